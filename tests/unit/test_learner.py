"""The Python interface: what is predicted, saved and read back."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ostinato.errors import DataError, InputError
from ostinato.files import read_sealed, write_sealed
from ostinato.learner import Learner
from ostinato.methods.simplecil import SimpleCIL
from ostinato.streams import StreamOptions, TaskStream, arrays
from ostinato.training.callbacks import Callback


@pytest.fixture(scope="module")
def taught() -> tuple[Learner, TaskStream]:
    """Four classes of one brightness each, in two tasks."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 8)
    pixels = np.clip(60 * labels[:, None, None] + rng.integers(0, 30, (32, 12, 20)), 0, 255).astype(np.uint8)
    stream = TaskStream(arrays(pixels, labels), StreamOptions(step=2, validation=0.25))
    learner = Learner("simplecil", precision="fp32")
    for task in stream:
        learner.learn(task)
    return learner, stream


def awkward_images() -> dict[str, Image.Image]:
    rng = np.random.default_rng(1)
    grey = np.linspace(0, 255, 24 * 24).reshape(24, 24).astype(np.uint8)
    grey[:12] = 255 - grey[:12]
    clear = np.zeros((24, 24, 4), np.uint8)
    clear[6:18, 6:18] = 255
    palette = Image.fromarray(grey).convert("P")
    palette.info["transparency"] = 0
    return {
        "turned.jpg": Image.fromarray(np.stack([grey] * 3, -1)),
        "clear.png": Image.fromarray(clear, "RGBA"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "palette.png": palette,
        "noise.png": Image.fromarray(rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)),
    }


@pytest.mark.parametrize("name", awkward_images())
def test_an_opened_image_is_seen_as_its_file_is(taught, tmp_path, name):
    path, exif = tmp_path / name, Image.Exif()
    exif[0x0112] = 6 if name == "turned.jpg" else 1
    awkward_images()[name].save(path, exif=exif)
    (by_file,) = taught[0].predict([path], topk=4)
    with Image.open(path) as image:
        (by_image,) = taught[0].predict([image], topk=4)
    assert by_image.scores == by_file.scores
    assert by_image.source == "image 0"


def test_bytes_files_arrays_and_tensors_are_seen_as_the_image_is(taught, tmp_path):
    image = awkward_images()["noise.png"]
    image.save(tmp_path / "a.png")
    data, pixels = (tmp_path / "a.png").read_bytes(), np.asarray(image)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with (tmp_path / "a.png").open("rb") as file:
        given = [image, data, file, io.BytesIO(data), pixels, tensor, pixels / 255, tensor.float() / 255]
        first, *others = taught[0].predict(given, topk=4)
    assert all(other.scores == pytest.approx(first.scores, abs=1e-6) for other in others)
    assert [p.source for p in others] == [f"image {i}" for i in range(1, 8)]
    grey = np.asarray(image.convert("L"))
    scores = [p.scores for p in taught[0].predict([image.convert("L"), grey, grey[:, :, None], grey / 255], topk=4)]
    assert all(other == pytest.approx(scores[0], abs=1e-6) for other in scores)
    assert taught[0].predict(tensor[None], topk=4)[0].scores == pytest.approx(first.scores, abs=1e-6), (
        "a batch is a list"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.zeros((4, 4), np.int64), "uint8, or of floats from 0 to 1, got int64"),
        (np.full((4, 4), 1.5), "values from 0 to 1"),
        (np.full((4, 4), np.nan), "values from 0 to 1"),
        (np.zeros((4, 4, 2), np.uint8), r"got \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (torch.zeros(4, 4), r"shape \(channels, H, W\)"),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), r"shape \(channels, H, W\)"),
        (io.StringIO("text"), "must be opened for bytes"),
        ("https://example.org/a.jpg", "is a URL. Download it first"),
        (Path("https://example.org/a.jpg"), "is a URL. Download it first"),
    ],
)
def test_other_pixels_and_urls_are_refused(taught, given, says):
    with pytest.raises(InputError, match=says):
        taught[0].predict([given])


def test_damaged_bytes_and_heic_pictures_are_named(taught, monkeypatch):
    with pytest.raises(DataError, match="image 0: not an image"):
        taught[0].predict([b"no image"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"image 0: a HEIC picture, .* pip install 'ostinato\[heic\]'. Or convert"):
        taught[0].predict([b"\0\0\0\x18ftypheic" + bytes(20)])
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(DataError, match="image 0: cannot be read"):
        taught[0].predict([closed])


def test_an_image_that_cannot_be_used_is_named(taught):
    with pytest.raises(DataError, match="image 1: pixels of kind 'F'"):
        taught[0].predict([Image.new("RGB", (8, 8)), Image.new("F", (8, 8))])


def test_what_is_no_list_of_images_is_refused(taught):
    with pytest.raises(InputError, match=r"predict\(\[\.\.\.\]\)"):
        taught[0].predict("a.png")
    for one in (b"a", io.BytesIO(), np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4)):
        with pytest.raises(InputError, match="also of one input"):
            taught[0].predict(one)
    with pytest.raises(InputError, match="input 0 is 3"):
        taught[0].predict([3])


def test_what_was_used_is_kept_with_what_was_learned(taught, tmp_path):
    learner, stream = taught
    parts = [part for task in stream for part in (task.train, task.validation)]
    used = {n for part in parts for n in part.fingerprints().tolist()}
    assert set(learner.used.tolist()) == used
    assert len(used) == 32
    learner.save(tmp_path / "model")
    assert np.array_equal(Learner.load(tmp_path / "model").used, learner.used)


def test_the_precision_that_was_asked_for_is_that_of_the_saved_learner(taught, tmp_path):
    taught[0].save(tmp_path / "model")
    assert Learner.load(tmp_path / "model").settings.dtype == torch.float32
    assert Learner.load(tmp_path / "model", precision="bf16").settings.dtype == torch.bfloat16
    again = Learner.load(tmp_path / "model", precision="bf16")
    again.save(tmp_path / "model")
    assert Learner.load(tmp_path / "model").settings.dtype == torch.bfloat16


def test_save_replaces_a_saved_learner_and_nothing_else(taught, tmp_path):
    learner, _ = taught
    learner.save(tmp_path / "model")
    learner.save(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"], "nothing half done is left"
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/mine").write_text("mine")
    for name in ("file", "folder"):
        with pytest.raises(InputError, match=f"{name} exists and is no saved learner"):
            learner.save(tmp_path / name)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and "mine" in p.read_bytes().decode("latin")) == [
        "file", "mine"
    ]  # fmt: skip
    assert not list(tmp_path.glob("*.part"))


def test_save_leaves_the_neighbours_alone(taught, tmp_path):
    for name in ("model.old", "model.part", "model.bak"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    for _ in range(2):
        taught[0].save(tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "model.bak", "model.old", "model.part"]
    assert (tmp_path / "model.old/mine").read_text() == "mine"


def test_a_learner_stopped_in_the_middle_says_so(taught, tmp_path):
    _, stream = taught
    learner = Learner("dualprompt", precision="fp32", train={"epochs": 1})
    learner.learn(stream.task(0))

    class Stop(Callback):
        def on_stage_start(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learner.learn(stream.task(1), callback=Stop())
    image = Image.new("RGB", (8, 8))
    for act in (
        lambda: learner.predict([image]),
        lambda: learner.evaluate(stream),
        lambda: learner.save(tmp_path / "model"),
        lambda: learner.learn(stream.task(1)),
    ):
        with pytest.raises(InputError, match="was interrupted while it learned the classes from 2 on"):
            act()


def test_classes_that_mean_the_same_are_kept_with_the_learner(taught, tmp_path):
    learner, stream = taught
    groups = [task.validation for task in stream]
    apart = learner.evaluate(groups)
    learner.label_groups = [0, 0, 0]
    try:
        assert learner.answers().tolist()[:3] == [0, 0, 0]
        assert len(set(learner.answers().tolist())) == 2, "a class beyond the list differs from all"
        learner.save(tmp_path / "model")
        again = Learner.load(tmp_path / "model")
        assert again.evaluate(groups).accuracy >= apart.accuracy
        wrong = torch.tensor([0, 0, 0, 0])
        assert again.evaluate(groups, label_groups=wrong).accuracy == 1
    finally:
        learner.label_groups = None


def test_a_backbone_that_reads_out_otherwise_is_refused(taught, tmp_path):
    """The weights may be the same, and features yet differ by a file beside them."""
    taught[0].save(tmp_path / "model")
    about = read_sealed(tmp_path / "model/artifact.json")
    about["preprocess"]["readout"] = "mean"
    write_sealed(tmp_path / "model/artifact.json", about)
    with pytest.raises(DataError, match="readout was 'mean' when it was learned and is 'cls' now"):
        Learner.load(tmp_path / "model")


class Unregistered(SimpleCIL):
    """A class that no name finds."""


def lesson() -> TaskStream:
    pixels = np.repeat(np.array([0, 120, 240], np.uint8), 6)[:, None, None] + np.zeros((12, 12), np.uint8)
    return TaskStream(arrays(pixels, np.repeat(np.arange(3), 6)), StreamOptions(step=3))


def test_a_class_learns_and_predicts_as_its_name_does():
    stream = lesson()
    by_class, by_name = Learner(SimpleCIL, precision="fp32"), Learner("simplecil", precision="fp32")
    for learner in (by_class, by_name):
        learner.learn(stream.task(0))
    images = [Image.new("L", (12, 12), brightness) for brightness in (0, 120, 240)]
    found = by_class.predict(images, topk=3)
    assert found == by_name.predict(images, topk=3)
    assert [one.classes[0] for one in found] == by_class.class_names


def test_a_registered_class_is_saved_and_loaded_by_its_name(tmp_path):
    learner = Learner(SimpleCIL, precision="fp32")
    learner.learn(lesson().task(0))
    learner.save(tmp_path / "saved")
    assert type(Learner.load(tmp_path / "saved").method) is SimpleCIL


def test_an_unregistered_class_learns_but_is_not_saved(tmp_path):
    """Its base's name would load another class."""
    learner = Learner(Unregistered, precision="fp32")
    assert learner.method.name == "Unregistered"
    learner.learn(lesson().task(0))
    assert len(learner.predict([Image.new("L", (12, 12))])) == 1
    with pytest.raises(
        InputError, match=r"save: Unregistered is neither registered nor from a file.*@ostinato.register"
    ):
        learner.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert SimpleCIL.name == "simplecil"


@pytest.mark.parametrize("given", [object(), int, SimpleCIL.__init__, None])
def test_what_is_no_method_is_refused(given):
    with pytest.raises(InputError, match=r"must be a name, a file or a subclass of ostinato\.Method"):
        Learner(given)


def test_options_of_a_class_are_checked():
    with pytest.raises(InputError, match=r"method.lenght: unknown key"):
        Learner(SimpleCIL, lenght=2)


@pytest.mark.parametrize("crop", [1.0, 0.5])
def test_training_without_augmentation_sees_what_the_test_sees(crop):
    learner = Learner("simplecil", crop=crop)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    trained, tested = learner.train_transform("none")(image, np.random.default_rng(1)), learner.eval_transform(image)
    assert torch.equal(trained, tested)
