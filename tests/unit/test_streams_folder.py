"""Image folders: layouts, and every way in which files go wrong."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ostinato.errors import DataError, InputError
from ostinato.streams import StreamOptions, TaskStream, image_folder, open_source
from ostinato.streams import decode as decode_module

FLOWERS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "flowers12"


def save(path, value=100, size=(12, 10), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    image.save(path, **options)
    return path


def plain(root, classes=("cat", "dog"), n=5):
    for c, name in enumerate(classes):
        for i in range(n):
            save(root / name / f"img{i}.png", value=10 * c + i)
    return root


def names(split):
    return [split.name(i) for i in range(len(split))]


def test_train_and_test_folders_in_natural_order(tmp_path):
    for split in ("train", "test"):
        for name in ("class10", "class2"):
            for i in (10, 9):
                save(tmp_path / split / name / f"img{i}.jpg")
    source = open_source(str(tmp_path))
    assert source.name == tmp_path.name
    assert source.class_names == ["class2", "class10"]
    assert names(source.train) == [
        "train/class2/img9.jpg",
        "train/class2/img10.jpg",
        "train/class10/img9.jpg",
        "train/class10/img10.jpg",
    ]
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert names(source.test)[0] == "test/class2/img9.jpg"
    assert source.train.load(0).mode == "RGB"
    assert source.notes == []
    assert not source.test_was_cut


def tiny_imagenet(root):
    """The layout of tiny-imagenet-200.zip, with an unlabelled test folder."""
    for c, name in enumerate(("n02", "n01")):
        for i in range(2):
            save(root / f"train/{name}/images/{name}_{i}.JPEG", value=10 * c + i)
        (root / f"train/{name}/{name}_boxes.txt").write_text("")
    for i in range(3):
        save(root / f"val/images/val_{i}.JPEG", value=50 + i)
    save(root / "test/images/test_0.JPEG", value=99)
    lines = ["val_0.JPEG\tn01\t0\t0\t62\t62", "val_1.JPEG\tn02\t1\t2\t3\t4", "val_2.JPEG\tn01\t0\t0\t9\t9"]
    (root / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


def cub(root):
    """The layout of CUB_200_2011.tgz: every second image is for training."""
    files = [f"{c:03d}.Bird_{c}/img_{i}.jpg" for c in (1, 2, 10) for i in range(4)]
    for i, file in enumerate(files):
        save(root / "images" / file, value=i)
    (root / "images.txt").write_text("".join(f"{i} {file}\n" for i, file in enumerate(files, 1)))
    (root / "train_test_split.txt").write_text("".join(f"{i} {i % 2}\n" for i in range(1, 13)))
    (root / "classes.txt").write_text("1 001.Bird_1\n2 002.Bird_2\n3 010.Bird_10\n")
    return root


def test_tiny_imagenet_as_it_is_downloaded(tmp_path):
    source = open_source(str(tiny_imagenet(tmp_path)))
    assert source.class_names == ["n01", "n02"]
    assert names(source.train)[:2] == ["train/n01/images/n01_0.JPEG", "train/n01/images/n01_1.JPEG"]
    assert names(source.test) == ["val/images/val_0.JPEG", "val/images/val_2.JPEG", "val/images/val_1.JPEG"]
    assert source.test.labels.tolist() == [0, 0, 1]
    assert source.train.labels.tolist() == [0, 0, 1, 1]
    assert not source.test_was_cut
    assert "Tiny ImageNet" in source.notes[0]


def test_cub_as_it_is_downloaded(tmp_path):
    source = open_source(str(cub(tmp_path)))
    assert source.class_names == ["001.Bird_1", "002.Bird_2", "010.Bird_10"]
    assert names(source.train)[:2] == ["images/001.Bird_1/img_0.jpg", "images/001.Bird_1/img_2.jpg"]
    assert names(source.test)[:2] == ["images/001.Bird_1/img_1.jpg", "images/001.Bird_1/img_3.jpg"]
    assert source.test.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_imagenet_r_as_it_is_downloaded(tmp_path):
    """Folders of wnids without a split, and a README."""
    plain(tmp_path, classes=("n01443537", "n01484850"), n=10)
    (tmp_path / "README.txt").write_text("ImageNet-R")
    source = open_source(str(tmp_path))
    assert source.class_names == ["n01443537", "n01484850"]
    assert (len(source.train), len(source.test)) == (16, 4)


@pytest.mark.parametrize(
    ("make", "file", "text", "message"),
    [
        (tiny_imagenet, "val/val_annotations.txt", "../../x.JPEG\tn01\n", "must name images in it"),
        (tiny_imagenet, "val/val_annotations.txt", "val_0.JPEG\n", "line 1 must have at least 2 words"),
        (tiny_imagenet, "val/val_annotations.txt", "val_0.JPEG\tn01\n", "1 have one kind only, such as n02"),
        (tiny_imagenet, "val/val_annotations.txt", "no.JPEG\tn01\nval_1.JPEG\tn02\n", "no.JPEG"),
        (cub, "images.txt", "1 /etc/x.jpg\n", "must name images in it"),
        (cub, "images.txt", "1 img_0.jpg\n", "image 1 must be <class>/<file>"),
        (cub, "train_test_split.txt", "1 2\n", "image 1 must be <class>/<file> and have a 1"),
    ],
)
def test_text_files_of_downloads_that_are_wrong(tmp_path, make, file, text, message):
    (make(tmp_path) / file).write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_stands_in_for_test(tmp_path, name):
    plain(tmp_path / "train")
    plain(tmp_path / name, n=2)
    source = image_folder(tmp_path)
    assert len(source.test) == 4
    assert f"{name} serves as the test split" in source.notes[0]


def test_test_wins_over_val(tmp_path):
    plain(tmp_path / "train")
    plain(tmp_path / "val", n=2)
    plain(tmp_path / "test", n=3)
    assert len(image_folder(tmp_path).test) == 6


def test_no_folder_beside_train_goes_without_a_word(tmp_path):
    plain(tmp_path / "train")
    plain(tmp_path / "Extra", n=2)
    plain(tmp_path / "val", n=2)
    plain(tmp_path / "test", n=3)
    assert "left out: val, Extra" in image_folder(tmp_path).notes[-1]


def test_a_class_may_be_called_train(tmp_path):
    plain(tmp_path, ("train", "test", "bus"))
    assert image_folder(tmp_path).class_names == ["bus", "test", "train"]


def test_images_without_classes_in_train_and_test_are_no_two_classes(tmp_path):
    plain(tmp_path, ("train", "test"))
    with pytest.raises(DataError, match=r"no class folders|no images"):
        image_folder(tmp_path)


def test_a_list_beside_class_folders_does_not_hide_the_images(tmp_path):
    plain(tmp_path)
    (tmp_path / "labels.csv").write_text("file,author\ncat/0.png,me\n")
    assert open_source(str(tmp_path)).class_names == ["cat", "dog"]
    (tmp_path / "train.csv").write_text("text,label\na,x\nb,y\n")
    assert open_source(str(tmp_path)).modality == "text"


@pytest.mark.parametrize("below", ["", "train"])
def test_a_part_is_set_aside_where_there_is_no_test(tmp_path, below):
    plain(tmp_path / below, n=10)
    for i in range(3):
        save(tmp_path / below / "rare" / f"{i}.png")
    save(tmp_path / below / "single" / "0.png")
    source = image_folder(tmp_path, seed=3)
    assert np.bincount(source.test.labels, minlength=4).tolist() == [2, 2, 1, 0]
    assert np.bincount(source.train.labels).tolist() == [8, 8, 2, 1]
    assert not set(names(source.train)) & set(names(source.test))
    assert "20% of each class" in source.notes[0]
    assert source.test_was_cut
    assert names(source.test) == names(image_folder(tmp_path, seed=3).test)
    assert names(source.test) != names(image_folder(tmp_path, seed=4).test)


def test_one_image_per_class_leaves_no_test(tmp_path):
    plain(tmp_path, n=1)
    assert image_folder(tmp_path).test is None


def test_nested_folders_belong_to_the_class(tmp_path):
    plain(tmp_path)
    save(tmp_path / "cat" / "holiday" / "2020" / "x.JPEG")
    source = image_folder(tmp_path)
    assert "cat/holiday/2020/x.JPEG" in names(source.train) + names(source.test)
    assert source.class_names == ["cat", "dog"]


@pytest.mark.parametrize("layout", ["plain", "split", "flag"])
def test_a_folder_per_task(tmp_path, layout):
    tasks = {"task2": ("a10", "a9"), "task10": ("b",), "task1": ("c",)}
    if layout == "flag":
        tasks = {"second": ("a10", "a9"), "third": ("b",), "first": ("c",)}
    for split in ("train", "test") if layout == "split" else ("",):
        for task, classes in tasks.items():
            plain(tmp_path / split / task, classes)
    source = open_source(str(tmp_path), task_folders=True if layout == "flag" else None)
    expected = [["c"], ["a9", "a10"], ["b"]]
    assert source.task_names == expected
    assert len(source.test) == (20 if layout == "split" else 4)
    stream = TaskStream(source, StreamOptions(tasks="folders"))
    assert [list(task.class_names) for task in stream] == expected
    assert len(TaskStream(source, StreamOptions(step=2))) == 2


def test_a_class_in_two_tasks(tmp_path):
    plain(tmp_path / "task1")
    plain(tmp_path / "task2", ("dog", "cow"))
    with pytest.raises(DataError, match="dog: in more than one task"):
        image_folder(tmp_path)


def test_rubbish_is_ignored_and_other_files_are_counted(tmp_path):
    plain(tmp_path)
    save(tmp_path / "__MACOSX" / "cat" / "x.png")
    save(tmp_path / ".hidden" / "x.png")
    save(tmp_path / "cat" / ".cache" / "x.png")
    for name in ("Thumbs.db", ".DS_Store", "._img0.png"):
        (tmp_path / "cat" / name).write_bytes(b"rubbish")
    (tmp_path / "cat" / "photo.mov").write_bytes(b"film")
    (tmp_path / "README.txt").write_text("hello")
    save(tmp_path / "loose.png")
    source = image_folder(tmp_path)
    assert source.class_names == ["cat", "dog"]
    assert len(source.train) + len(source.test) == 10
    assert "1 files that are not images are left out: 1 .mov" in source.notes
    assert any("1 images beside the class folders" in note for note in source.notes)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "png", "bmp", "webp", "gif", "tif", "TIFF"])
def test_every_extension(tmp_path, suffix):
    plain(tmp_path)
    save(tmp_path / "cat" / f"extra.{suffix}")
    source = image_folder(tmp_path)
    assert len(source.train) + len(source.test) == 11
    for split in (source.train, source.test):
        assert all(split.load(i).mode == "RGB" for i in range(len(split)))


def broken(path, kind):
    """Write a bad image and return what the error must say about it."""
    good = save(path, size=(200, 150)).read_bytes()
    if kind == "empty":
        path.write_bytes(b"")
        return "empty"
    if kind == "truncated":
        path.write_bytes(good[: len(good) * 7 // 10])
        return "truncated" if path.suffix != ".png" else "truncated|damaged"
    if kind == "text":
        path.write_text("<html>not found</html>")
        return "not an image"
    if kind == "damaged":
        middle = len(good) // 2
        path.write_bytes(good[:middle] + bytes(64) + good[middle + 64 :])
        return "damaged"
    header = struct.pack(">2I5B", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return "too large"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("empty", "x.jpg"),
        ("truncated", "x.jpg"),
        ("truncated", "x.png"),
        ("text", "x.jpg"),
        ("damaged", "x.png"),
        ("huge", "x.png"),
    ],
)
def test_bad_files_are_named_and_can_be_skipped(tmp_path, kind, name):
    plain(tmp_path)
    path = tmp_path / "dog" / name
    reason = broken(path, kind)
    with pytest.raises(DataError, match=rf"(?s)1 of 11 in .*dog/{name}: ({reason}).*data\.on_error=skip") as caught:
        image_folder(tmp_path)
    assert caught.value.exit_code == 3
    source = image_folder(tmp_path, on_error="skip")
    assert len(source.train) + len(source.test) == 10
    assert len(source.skipped) == 1
    assert source.skipped[0].startswith(f"dog/{name}: ")
    record = TaskStream(source, StreamOptions()).describe()
    assert record["skipped"] == source.skipped


def test_too_large_by_a_little(tmp_path, monkeypatch):
    plain(tmp_path)
    save(tmp_path / "cat" / "big.png", size=(40, 40))
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="40 x 40"):
        image_folder(tmp_path)


def test_many_bad_files_in_one_error(tmp_path):
    plain(tmp_path)
    for i in range(13):
        (tmp_path / "cat" / f"bad{i}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"13 of 23") as caught:
        image_folder(tmp_path)
    assert str(caught.value).count("empty (0 bytes)") == 10
    assert "... and 3 more" in str(caught.value)


def test_damage_after_opening_is_named_at_load(tmp_path):
    plain(tmp_path)
    source = image_folder(tmp_path)
    path = tmp_path / source.train.name(0)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=path.name):
        source.train.load(0)
    path.unlink()
    with pytest.raises(DataError, match=rf"{path.name}: there is no such file"):
        source.train.load(0)


def test_large_folders_are_checked_by_header_only(tmp_path, monkeypatch):
    plain(tmp_path)
    broken(tmp_path / "cat" / "x.jpg", "truncated")
    (tmp_path / "cat" / "y.jpg").write_bytes(b"")
    monkeypatch.setattr(decode_module, "FULL_CHECK_FILES", 3)
    source = image_folder(tmp_path, on_error="skip")
    assert source.skipped == ["cat/y.jpg: empty (0 bytes)"]
    split, i = next((s, names(s).index("cat/x.jpg")) for s in (source.train, source.test) if "cat/x.jpg" in names(s))
    with pytest.raises(DataError, match=r"x\.jpg: truncated"):
        split.load(i)


def test_class_without_a_usable_image(tmp_path):
    plain(tmp_path)
    (tmp_path / "cow").mkdir()
    with pytest.raises(DataError, match="cow: the class folder holds no images"):
        image_folder(tmp_path)
    (tmp_path / "cow" / "x.mov").write_bytes(b"film")
    with pytest.raises(DataError, match=r"cow: the class folder holds no images \(only 1 \.mov\)"):
        image_folder(tmp_path)
    (tmp_path / "cow" / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"no readable one:\n  cow"):
        image_folder(tmp_path, on_error="skip")


def test_splits_with_different_classes(tmp_path):
    plain(tmp_path / "train", ("cat", "dog"))
    plain(tmp_path / "test", ("cat", "cow"))
    with pytest.raises(DataError, match=r"(?s)train/dog: not in test.*test/cow: not in train"):
        image_folder(tmp_path)


@pytest.mark.parametrize("twin", ["Cat", " cat", "cat ", "\uff43at"])
def test_names_that_only_look_different(tmp_path, twin):
    plain(tmp_path, ("cat", "dog", twin))
    with pytest.raises(DataError, match="differ only by case, spaces"):
        image_folder(tmp_path)


def test_unicode_forms_are_one_name(tmp_path):
    plain(tmp_path, ("cafe\u0301", "dog"))
    assert image_folder(tmp_path).class_names[0] == "caf\u00e9"
    plain(tmp_path, ("caf\u00e9",))
    with pytest.raises(DataError, match="form of a character"):
        image_folder(tmp_path)


def test_one_class_in_total(tmp_path):
    plain(tmp_path, ("cat",))
    with pytest.raises(DataError, match="at least two"):
        TaskStream(image_folder(tmp_path), StreamOptions())


def test_folders_that_are_none(tmp_path):
    with pytest.raises(DataError, match=r"There is no folder .*nowhere"):
        image_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no images"):
        image_folder(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.zip must be a folder of images, but is a file.*unpack"):
        open_source(str(tmp_path / "a.zip"))
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "x.mov").write_bytes(b"film")
    with pytest.raises(DataError, match=r"holds no images, only 1 \.mov: expected ROOT/train"):
        image_folder(tmp_path)
    with pytest.raises(InputError, match="on_error"):
        image_folder(tmp_path, on_error="warn")


def test_a_flat_folder_explains_the_layout(tmp_path):
    save(tmp_path / "b.png")
    save(tmp_path / "a.png")
    with pytest.raises(
        DataError,
        match=r"2 images and no class folders \(a\.png.*expected ROOT/train/<class>",
    ):
        image_folder(tmp_path)


def load_one(tmp_path, image, name="x.png", **options):
    plain(tmp_path, n=2)
    for old in (tmp_path / "cat").iterdir():
        old.unlink()
    image.save(tmp_path / "cat" / name, **options)
    return np.asarray(image_folder(tmp_path).train.load(0))


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: the left side belongs at the top
    pixels = load_one(tmp_path, image, "x.jpg", exif=exif, quality=95)
    assert pixels.shape == (20, 10, 3)
    assert pixels[3, 5, 0] > 200
    assert pixels[16, 5, 2] > 200


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_is_ignored(tmp_path):
    pixels = load_one(tmp_path, Image.new("RGB", (9, 9), "red"), "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    assert pixels.shape == (9, 9, 3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (9, 8, 7)).quantize(2), (9, 8, 7)),
        (Image.fromarray(np.full((4, 4), 257 * 90, np.uint16)), (90, 90, 90)),
    ],
    ids=["grey", "bits", "clear", "half", "grey-alpha", "palette", "16-bit"],
)
def test_kinds_of_pixels(tmp_path, image, expected):
    pixels = load_one(tmp_path, image)
    assert pixels.shape == (4, 4, 3)
    assert tuple(pixels[1, 1]) == expected


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([10, 20, 30, 200, 100, 50])
    assert tuple(load_one(tmp_path, image, transparency=0)[0, 0]) == (255, 255, 255)


def test_cmyk_and_animation(tmp_path):
    pixels = load_one(tmp_path / "a", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg", quality=95)
    assert pixels[0, 0, 0] > 230
    assert pixels[0, 0, 1] < 30
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    pixels = load_one(tmp_path / "b", frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert tuple(pixels[0, 0]) == (255, 0, 0)


def test_float_images_are_refused(tmp_path):
    plain(tmp_path)
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "cat" / "x.tif")
    with pytest.raises(DataError, match=r"x\.tif: pixels of kind 'F'"):
        image_folder(tmp_path)


def test_decode_from_bytes():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    assert decode_module.decode(buffer.getvalue(), "somewhere").size == (3, 2)
    with pytest.raises(DataError, match="somewhere: empty"):
        decode_module.decode(b"", "somewhere")


@pytest.mark.skipif(not FLOWERS.is_dir(), reason="needs the flower folder in ../shared/data")
def test_real_flowers():
    source = open_source(str(FLOWERS))
    assert (len(source.class_names), len(source.train), len(source.test)) == (12, 720, 240)
    assert source.train.load(0).size == (224, 224)
    stream = TaskStream(source, StreamOptions(step=4))
    assert [len(task.train) + len(task.validation) for task in stream] == [240] * 3
