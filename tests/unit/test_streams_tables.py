"""Parquet files, the hub and downloaded data sets (no test needs a network)."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ostinato.errors import DataError, InputError
from ostinato.streams import StreamOptions, TaskStream, open_source
from ostinato.streams.tables import hub
from ostinato.streams.tables import table as open_table
from ostinato.streams.vision import cifar100

CIFAR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar100"


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def table(labels, *, column="img", label="label", names=None, kind="struct", extra=None):
    images = [png(i) for i in range(len(labels))]
    if kind == "struct":
        images = [{"bytes": data, "path": None} for data in images]
    columns = {column: images, label: labels, **(extra or {})}
    result = pa.table(columns)
    if names is not None:
        features = {column: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
        result = result.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    return result


def write(folder, **tables):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in tables.items():
        pq.write_table(content, folder / f"{name}.parquet")
    return folder


def test_class_label_names(tmp_path):
    names = ["apple", "bear", "cup"]
    write(tmp_path, train=table([2, 0, 1, 1], names=names), test=table([1, 0, 2], names=names))
    source = open_source(str(tmp_path))
    assert source.class_names == names
    assert source.train.labels.tolist() == [2, 0, 1, 1]
    assert source.test.labels.tolist() == [1, 0, 2]
    assert source.train.name(3) == "train.parquet row 3"
    image = source.train.load(3)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (3, 2), (3, 0, 0))
    assert source.name == tmp_path.name


def test_integer_and_text_labels(tmp_path):
    write(tmp_path / "a", train=table([10, 9, 10, -1]), test=table([9]))
    source = open_table(tmp_path / "a")
    assert source.class_names == ["-1", "9", "10"]
    assert source.train.labels.tolist() == [2, 1, 2, 0]
    write(tmp_path / "b", train=table(["x10", "x9", "x10"]), test=table(["x9"]))
    source = open_table(tmp_path / "b")
    assert source.class_names == ["x9", "x10"]
    assert source.test.labels.tolist() == [0]


def test_shards_and_the_hub_layout(tmp_path):
    tables = {"train-00000-of-00002": table([0, 1, 0]), "train-00001-of-00002": table([1, 1])}
    write(tmp_path / "data", **tables, **{"validation-00000-of-00001": table([0, 1])})
    source = open_source(str(tmp_path))
    assert source.train.name(2) == "train-00000-of-00002.parquet row 2"
    assert source.train.name(3) == "train-00001-of-00002.parquet row 0"
    assert source.train.load(4).getpixel((0, 0)) == (1, 0, 0)
    assert "validation serves as the test split" in source.notes[0]


def test_a_part_is_set_aside_where_there_is_no_test(tmp_path):
    write(tmp_path, train=table([0] * 10 + [1] * 5))
    for path in (tmp_path, tmp_path / "train.parquet"):
        source = open_source(str(path), seed=1)
        assert np.bincount(source.test.labels).tolist() == [2, 1]
        assert len(source.train) == 12
        assert "20%" in source.notes[0]
        assert source.test_was_cut


def test_columns_are_found_or_named(tmp_path):
    content = table([0, 1], column="photo", label="target", names=["a", "b"])
    write(tmp_path / "typed", train=content, test=content)
    assert open_table(tmp_path / "typed").class_names == ["a", "b"]
    binary = table([0, 1], column="image", kind="binary", label="fine_label", extra={"coarse_label": [5, 6]})
    write(tmp_path / "binary", train=binary, test=binary)
    assert open_table(tmp_path / "binary").class_names == ["0", "1"]
    assert open_table(tmp_path / "binary", label_column="coarse_label").class_names == ["5", "6"]
    named = table([0, 1], column="blob", kind="binary")
    write(tmp_path / "named", train=named, test=named)
    assert len(open_table(tmp_path / "named", image_column="blob").train) == 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (pa.table({"x": [1, 2], "label": [0, 1]}), {}, "no column of images or texts. Columns: x, label"),
        (table([0, 1], label="target"), {}, "not clear. Columns: img, target"),
        (table([0, 1]), {"label_column": "labe"}, "Did you mean 'label'"),
        (table([0, 1]), {"image_column": "im"}, "Did you mean 'img'"),
        (table([0, 1]), {"image_column": "label"}, "holds int64"),
        (table([0.5, 1.0]), {}, "integers or text, but 'label' of .* holds double"),
        (
            table([0, 1], column="left", extra={"right": [{"bytes": b"", "path": None}] * 2}),
            {},
            "several columns of images",
        ),
    ],
)
def test_wrong_columns(tmp_path, content, options, message):
    write(tmp_path, train=content, test=content)
    with pytest.raises(InputError, match=message):
        open_table(tmp_path, **options)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (table([0, None]), table([0]), r"1 lack one, such as train\.parquet row 1"),
        (table([0, 1]), table([0, 7]), r"such as 7 in test\.parquet row 1"),
        (table([0, 5], names=["a", "b"]), table([0]), r"0\.\.1.*5 in train\.parquet row 1"),
        (table([0, 1], names=["a", "b"]), table([-1]), r"-1 in test\.parquet row 0"),
        (table([0, 1]), table([0, 1]).drop_columns(["img"]), r"test\.parquet lacks the columns \['img'\]"),
        (table([0, 1]).slice(0, 0), table([0]), "no training rows"),
    ],
)
def test_wrong_rows(tmp_path, train, test, message):
    write(tmp_path, train=train, test=test)
    with pytest.raises(DataError, match=message):
        open_table(tmp_path)


def test_classes_without_rows_are_left_out(tmp_path):
    content = table([0, 2], names=["a", "b", "c"])
    write(tmp_path, train=content, test=content)
    source = open_table(tmp_path)
    assert source.class_names == ["a", "c"]
    assert source.train.labels.tolist() == [0, 1]
    assert "1 classes" in source.notes[0]


def test_bad_images_are_named_and_can_be_skipped(tmp_path):
    images = [png(0), png(1)[:40], b"", png(3), None]
    content = pa.table({"image": pa.array(images, pa.binary()), "label": [0, 1, 0, 1, 0]})
    write(tmp_path, train=content, test=table([0, 1], column="image", kind="binary"))
    with pytest.raises(DataError, match=r"(?s)3 of 5.*row 1: .*row 2: empty.*row 4: no image") as caught:
        open_table(tmp_path)
    assert "data.on_error=skip" in str(caught.value)
    source = open_table(tmp_path, on_error="skip")
    assert [source.train.name(i) for i in range(2)] == ["train.parquet row 0", "train.parquet row 3"]
    assert source.train.load(1).getpixel((0, 0)) == (3, 0, 0)
    assert source.train.labels.tolist() == [0, 1]
    assert len(source.skipped) == 3


def test_rows_that_point_to_files(tmp_path):
    (tmp_path / "x.png").write_bytes(png(9))
    content = pa.table({"image": [{"bytes": None, "path": "x.png"}] * 2, "label": [0, 1]})
    write(tmp_path, train=content, test=content)
    schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])
    write(tmp_path, train=content.cast(schema), test=content.cast(schema))
    assert open_table(tmp_path).train.load(0).getpixel((0, 0)) == (9, 0, 0)


def test_files_that_are_no_parquet(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"train\.parquet cannot be read as parquet"):
        open_source(str(tmp_path))


def test_shards_that_do_not_fit(tmp_path):
    write(tmp_path, **{"train-0": table([0, 1]), "train-1": table([0, 1], label="other")})
    with pytest.raises(DataError, match=r"train-1\.parquet.*(?s:.*)same columns"):
        open_source(str(tmp_path))


def test_folder_without_a_training_file(tmp_path):
    write(tmp_path, part1=table([0]), trainees=table([0]))
    with pytest.raises(DataError, match=r"must hold train\.parquet(?s:.*)part1\.parquet"):
        open_source(str(tmp_path))


def fake_hub(**splits):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    loaded = {}
    for name, labels in splits.items():
        rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(labels))], "label": labels}
        loaded[name] = datasets.Dataset.from_dict(rows, features=features)
    return datasets.DatasetDict(loaded)


def test_hub(monkeypatch):
    import datasets

    asked = []
    bars = datasets.utils.logging.is_progress_bar_enabled()
    monkeypatch.setattr(
        datasets, "load_dataset", lambda name: asked.append(name) or fake_hub(train=[0, 1, 1, 0], test=[1, 0])
    )
    source = open_source("hub:owner/letters")
    assert asked == ["owner/letters"]
    assert source.class_names == ["a", "b"]
    assert source.test.labels.tolist() == [1, 0]
    assert source.train.name(2) == "owner/letters train row 2"
    assert source.train.load(2).getpixel((0, 0)) == (2, 0, 0)
    assert datasets.utils.logging.is_progress_bar_enabled() == bars


def test_hub_that_cannot_be_reached(monkeypatch):
    import datasets

    def fail(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"owner/x.*ConnectionError: no route to host.*parquet files"):
        hub("owner/x")
    monkeypatch.setattr(datasets, "load_dataset", lambda name: fake_hub(test=[0, 1]))
    with pytest.raises(DataError, match="no training split, only test"):
        hub("owner/x")


def test_hub_without_the_package_that_reads_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"hub:owner/x needs the package datasets.*pip install 'ostinato\[hub\]'"):
        open_source("hub:owner/x")


def test_hub_with_rows_that_cannot_be_read(monkeypatch):
    import datasets

    damaged = pa.Array.from_buffers(pa.string(), 2, pa.array([b"a", b"\xff"]).buffers())
    rows = datasets.Dataset(pa.table({"text": damaged, "label": [0, 1]}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict(train=rows))
    with pytest.raises(DataError, match=r"owner/x.*ArrowInvalid: .*Invalid UTF8"):
        hub("owner/x")


def test_cifar100_where_nothing_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("OSTINATO_DATA", "~nosuchuser/data")
    with pytest.raises(InputError, match="OSTINATO_DATA must be a path, but the home folder in"):
        open_source("cifar100")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be downloaded"):
        cifar100(tmp_path / "file" / "x")


class FakeCifar:
    """What torchvision's class does, without the pixels."""

    online = True
    downloads = 0

    def __init__(self, root, train, download=False):
        if not download and not FakeCifar.downloads:
            raise RuntimeError("Dataset not found or corrupted.")
        if download:
            if not FakeCifar.online:
                raise OSError("no route to host")
            FakeCifar.downloads += 1
        self.data = np.zeros((4, 32, 32, 3), np.uint8)
        self.targets = [0, 1, 2, 1]
        self.classes = ["apple", "bear", "cup"]


def test_cifar100(monkeypatch, tmp_path):
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", FakeCifar)
    monkeypatch.setattr(FakeCifar, "downloads", 0)
    monkeypatch.setattr(FakeCifar, "online", False)
    monkeypatch.setenv("OSTINATO_DATA", str(tmp_path / "home"))
    with pytest.raises(DataError, match=rf"{tmp_path}/home/cifar-100-python.*no route to host"):
        open_source("cifar100")
    monkeypatch.setattr(FakeCifar, "online", True)
    source = cifar100(tmp_path / "elsewhere")
    assert FakeCifar.downloads == 2
    assert source.class_names == ["apple", "bear", "cup"]
    assert source.test.name(1) == "test row 1"
    cifar100(tmp_path / "elsewhere")
    assert FakeCifar.downloads == 2


@pytest.mark.skipif(not CIFAR.is_dir(), reason="needs the CIFAR-100 files in ../shared/data")
def test_real_cifar100():
    source = open_source(str(CIFAR))
    assert (len(source.train), len(source.test)) == (10_000, 5_000)
    assert source.class_names[:2] == ["apple", "aquarium_fish"]
    assert np.bincount(source.train.labels).tolist() == [100] * 100
    assert source.train.load(17).size == (32, 32)
    stream = TaskStream(source, StreamOptions(order="seed1993", limit_per_class=20))
    assert [len(task.train) for task in stream] == [200] * 10
    assert len(stream.task(0).validation) == 100
    assert stream.class_names[0] == source.class_names[68]
