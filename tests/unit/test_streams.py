"""Tasks, labels and splits: properties that every stream must have."""

import json
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from ostinato.errors import DataError, InputError
from ostinato.streams import (
    EvalTransform,
    LabeledDataset,
    Source,
    StreamOptions,
    TaskStream,
    TrainTransform,
    arrays,
    open_source,
    scorable,
)
from ostinato.streams.source import allotted, natural_key, shuffled


def toy(counts, test=2, names=None):
    """A source with ``counts[i]`` training images of class i, whose red value is the class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(0)
    labels = labels[rng.permutation(len(labels))]
    test_labels = np.repeat(np.arange(len(counts)), test)

    def images(values):
        pixels = np.zeros((len(values), 4, 4, 3), dtype=np.uint8)
        pixels[..., 0] = values[:, None, None]
        return pixels

    names = names or [f"class {i}" for i in range(len(counts))]
    return arrays(images(labels), labels, images(test_labels), test_labels, class_names=names, name="toy")


def pieces(stream):
    return [(task.train, task.validation, stream.test(i)) for i, task in enumerate(stream)]


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 6), min_size=2, max_size=12),
    data=st.data(),
    order=st.sampled_from(["natural", "seeded", "seed1993"]),
    validation=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 3),
    offset=st.integers(0, 5),
)
def test_tasks_partition_classes_and_samples(counts, data, order, validation, seed, offset):
    first = data.draw(st.none() | st.integers(1, len(counts)))
    step = data.draw(st.none() | st.integers(1, len(counts) + 1))
    options = StreamOptions(first=first, step=step, order=order, validation=validation, seed=seed)
    source = toy(counts)
    stream = TaskStream(source, options, offset_classes=offset, offset_tasks=offset)
    labels = [label for task in stream for label in task.classes]
    assert labels == list(range(offset, offset + len(counts)))
    assert sorted(stream.class_names) == sorted(source.class_names)
    assert [task.index for task in stream] == list(range(offset, offset + len(stream)))
    seen = set()
    for i, task in enumerate(stream):
        assert task.n_seen == task.classes.stop
        start = task.classes.start - offset
        assert list(task.class_names) == stream.class_names[start : start + len(task.classes)]
        names = set(task.train.names()), set(task.validation.names())
        assert not names[0] & names[1]
        assert not (names[0] | names[1]) & seen
        seen |= names[0] | names[1]
        for part in (task.train, task.validation, stream.test(i)):
            assert set(part.labels.tolist()) <= set(task.classes)
            for index in range(len(part)):  # the pixel says which class it is
                name = stream.class_names[int(part.labels[index]) - offset]
                assert part.raw(index).getpixel((0, 0)) == (source.class_names.index(name), 0, 0)
        for label, name in zip(task.classes, task.class_names, strict=True):
            n = counts[source.class_names.index(name)]
            held = 0 if validation == 0 or n < 2 else max(1, int(validation * n))
            assert task.validation.class_counts().get(label, 0) == held
            assert task.train.class_counts()[label] == n - held
    assert len(seen) == sum(counts)


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(1, 8), min_size=2, max_size=8), seed=st.integers(0, 5))
def test_splits_do_not_depend_on_the_class_order(counts, seed):
    def parts(order, step):
        options = StreamOptions(order=order, step=step, seed=seed, limit_per_class=3)
        found = pieces(TaskStream(toy(counts), options))
        return [sorted(name for task in found for name in task[part].names()) for part in range(3)]

    reference = parts("natural", 1)
    assert parts("seeded", 2) == reference
    assert parts("seed1993", 3) == reference


def test_order_seed1993_is_the_published_one():
    stream = TaskStream(toy([1] * 100), StreamOptions(order="seed1993"))
    assert stream.class_names[:5] == [f"class {i}" for i in (68, 56, 78, 8, 23)]


def test_order_seeded_depends_on_the_seed_alone_and_leaves_global_state_untouched():
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    source = toy([2] * 10)
    names = [TaskStream(source, StreamOptions(order="seeded", seed=seed)).class_names for seed in (1, 1, 2)]
    examples = TaskStream(source, StreamOptions(order="seed1993")).task(0).train.with_transform(TrainTransform(8))
    _ = examples[0, 3]
    assert names[0] == names[1] != names[2]
    assert np.array_equal(before[0], np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(before[1], torch.get_rng_state())


@pytest.mark.parametrize(
    ("n", "options", "sizes"),
    [
        (100, {}, [10] * 10),
        (50, {}, [10] * 5),
        (10, {}, [2] * 5),
        (11, {}, [3, 3, 3, 2]),
        (3, {}, [1] * 3),
        (10, {"first": 4}, [4, 2, 2, 2]),
        (10, {"first": 10}, [10]),
        (10, {"first": 5, "step": 3}, [5, 3, 2]),
        (10, {"step": 20}, [10]),
    ],
)
def test_task_sizes(n, options, sizes):
    stream = TaskStream(toy([1] * n), StreamOptions(**options))
    assert [len(task.classes) for task in stream] == sizes


def test_limit_applies_after_validation():
    options = StreamOptions(validation=0.25, limit_per_class=3)
    task = TaskStream(toy([20, 8]), options).task(0)
    assert task.validation.class_counts() == {0: 5}
    assert task.train.class_counts() == {0: 3}
    unlimited = TaskStream(toy([20, 8]), StreamOptions(validation=0.25)).task(0)
    assert task.validation.names() == unlimited.validation.names()
    assert set(task.train.names()) < set(unlimited.train.names())


def test_validation_counts_as_a_person_would():
    task = TaskStream(toy([100, 2]), StreamOptions(validation=0.29)).task(0)
    assert len(task.validation) == 29  # although 0.29 * 100 < 29 in floating point


def test_explicit_tasks_may_be_a_subset():
    stream = TaskStream(toy([3] * 5), StreamOptions(tasks=[["class 3"], ["class 0", "class 4"]]))
    assert stream.class_names == ["class 3", "class 0", "class 4"]
    assert [list(task.classes) for task in stream] == [[0], [1, 2]]
    assert len(stream.test(1)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 0}, "step: Input should be greater than or equal to 1, got 0"),
        ({"first": -1}, "first: Input should be greater than or equal to 1"),
        ({"limit_per_class": 0}, "limit_per_class: Input should be greater than or equal to 1"),
        ({"first": 6}, "at most the 5 classes of toy, not 6"),
        ({"order": "seed1992"}, "order: Input should be .* or 'seed1993', got 'seed1992'"),
        ({"validation": 1.0}, "validation: Input should be less than 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"stepp": 1}, "stepp: unknown key. Did you mean 'step'"),
        ({"tasks": [["class 1", "klass 2"]]}, "toy has no class 'klass 2'. Did you mean 'class 2'"),
        ({"tasks": [["class 1"], ["class 1"]]}, "lists twice: 'class 1'"),
        ({"tasks": [["class 1"], []]}, "at least one class"),
        ({"tasks": []}, "at least one class"),
        ({"tasks": [["class 1"]], "step": 2}, "leave out first, step and order"),
        ({"tasks": [["class 1"]], "order": "seeded"}, "leave out first, step and order"),
        ({"tasks": "folder"}, "lists of class names or 'folders'"),
        ({"tasks": "folders"}, "a folder per task"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        TaskStream(toy([2] * 5), StreamOptions(**options))


KNOWN = ["class 2", "x", "class 0", "y"]


def after(source, known=KNOWN, **more):
    options = {key: more.pop(key) for key in ("step", "tasks", "validation", "order") if key in more}
    return TaskStream(source, StreamOptions(**options), offset_classes=len(known), offset_tasks=2, known=known, **more)


def test_samples_of_known_classes_come_with_the_first_task_under_their_labels():
    stream = after(toy([4, 5, 6, 7], test=2), step=1, validation=0.2)
    assert stream.class_names == ["class 1", "class 3"]
    assert stream.known_names == ["class 2", "class 0"], "in order of their labels"
    first, second = stream
    assert (first.classes, second.classes) == (range(4, 5), range(5, 6))
    assert first.known.labels.tolist() == [0] * 5 + [2] * 3
    assert [first.known.raw(i).getpixel((0, 0))[0] for i in range(8)] == [2] * 5 + [0] * 3
    assert first.known_validation.labels.tolist() == [0, 2]
    assert stream.known_test().labels.tolist() == [0, 0, 2, 2]
    assert second.known is None
    described = json.loads(json.dumps(stream.describe()))["known"]
    assert described["classes"] == ["class 2", "class 0"]
    assert described["counts"] == {"train": 8, "validation": 2, "test": 4}
    assert set(described["digests"]) == {"train", "validation", "test"}


def test_a_stream_of_known_classes_alone_has_a_task_without_classes():
    (task,) = after(toy([3, 3], names=["x", "y"]), validation=0)
    assert (task.classes, task.n_seen, task.index, len(task.train)) == (range(4, 4), 4, 2, 0)
    assert task.known.labels.tolist() == [1] * 3 + [3] * 3


def test_tasks_by_name_choose_the_known_classes_too():
    stream = after(toy([3] * 4), tasks=[["class 2"], ["class 3"]], validation=0)
    assert (stream.class_names, stream.known_names, len(stream)) == (["class 3"], ["class 2"], 1)


def test_what_was_learned_before_is_left_out_of_known_classes():
    images = np.arange(8 * 48, dtype=np.uint8).reshape(8, 4, 4, 3)
    source = arrays(images, [0, 1] * 4, class_names=["x", "new"])
    used = np.sort(LabeledDataset(source.train, np.array([0, 1, 4]), np.zeros(3), seed=0).fingerprints())
    stream = after(source, used=used, validation=0)
    assert stream.repeated == 2
    assert stream.task(0).known.names() == ["train row 2", "train row 6"]
    assert len(stream.task(0).train) == 4, "a new class may share samples with others"
    everything = np.sort(LabeledDataset(source.train, np.arange(8), np.zeros(8), seed=0).fingerprints())
    only = arrays(images[::2], [0] * 4, class_names=["x"])
    with pytest.raises(DataError, match="all 4 of arrays are of known classes and were learned before"):
        after(only, used=everything)


@pytest.mark.parametrize("name", ["X", " x", "\uff58"])
def test_a_near_twin_of_a_known_name_takes_a_choice(name):
    source = toy([3, 3], names=[name, "new"])
    with pytest.raises(DataError, match=rf"(?s){name!r} beside 'x'.*data\.twins=known.*data\.twins=new"):
        after(source)
    assert after(source, twins="new").class_names == [name, "new"]
    stream = after(source, twins="known", validation=0)
    assert (stream.class_names, stream.known_names) == (["new"], ["x"])
    assert stream.task(0).known.labels.tolist() == [1] * 3


def test_a_twin_stands_for_one_class():
    with pytest.raises(DataError, match="'X' of toy must stand for one class, but 'x' is there, too"):
        after(toy([3, 3], names=["X", "x"]), twins="known")
    with pytest.raises(DataError, match="'DAISY' of toy must stand for one class, but 'Daisy' and 'daisy' are"):
        after(toy([3], names=["DAISY"]), ["Daisy", "daisy"], twins="known")


def test_one_class_is_too_few_unless_others_are_known():
    with pytest.raises(DataError, match="at least two"):
        TaskStream(toy([3]), StreamOptions())
    stream = TaskStream(toy([3]), StreamOptions(), offset_classes=2, offset_tasks=1, known=["a", "b"])
    assert stream.task(0).classes == range(2, 3)
    assert stream.task(0).index == 1


def test_classes_need_training_images_and_distinct_names():
    with pytest.raises(DataError, match="class 1"):
        TaskStream(toy([2, 0, 2]), StreamOptions())
    with pytest.raises(DataError, match=r"must differ.*\n  same"):
        TaskStream(toy([2, 2], names=["same", "same"]), StreamOptions())


def test_missing_test_split_is_said_when_it_is_needed():
    source = arrays(np.zeros((4, 2, 2), np.uint8), [0, 0, 1, 1])
    stream = TaskStream(source, StreamOptions(step=1))
    assert "test" not in stream.describe()["tasks"][0]["counts"]
    with pytest.raises(DataError, match="arrays has none"):
        stream.test(0)


def test_tasks_outside_the_stream():
    stream = TaskStream(toy([2] * 4), StreamOptions(step=2))
    for index in (2, -1):
        with pytest.raises(IndexError):
            stream.task(index)
        with pytest.raises(IndexError):
            stream.test(index)


def test_examples_are_a_function_of_key_and_seed():
    noisy = arrays(np.random.default_rng(0).integers(0, 255, (8, 9, 9, 3), dtype=np.uint8), [0, 1] * 4)
    train = TaskStream(noisy, StreamOptions(step=2)).task(0).train.with_transform(TrainTransform(16))
    assert torch.equal(train[2, 5][0], train[2, 5][0])
    assert not torch.equal(train[2, 5][0], train[2, 6][0])
    assert torch.equal(train[2][0], EvalTransform(16)(train.raw(2), None))
    assert train[2, 5][1] == int(train.labels[2])
    expected = train.transform(train.raw(2), np.random.default_rng([0, 2, 5]))
    assert torch.equal(train[2, 5][0], expected)
    other = TaskStream(noisy, StreamOptions(step=2, seed=0)).task(0).train.with_transform(train.transform)
    assert torch.equal(train[1, 1][0], pickle.loads(pickle.dumps(other))[1, 1][0])


def test_examples_basics():
    train = TaskStream(toy([4, 4, 4]), StreamOptions(step=3, validation=0)).task(0).train
    with pytest.raises(InputError, match="needs a transform before"):
        _ = train[0]
    seen = train.with_transform(EvalTransform(6))
    assert train.transform is None
    image, label = seen[-1]
    assert image.shape == (3, 6, 6)
    assert image.dtype == torch.uint8
    assert isinstance(label, int)
    assert train.labels.dtype == torch.int64
    with pytest.raises(IndexError):
        _ = seen[len(seen)]
    batches = list(torch.utils.data.DataLoader(seen, batch_size=5))
    assert [len(labels) for _, labels in batches] == [5, 5, 2]


def test_subset_and_concat_keep_samples_with_their_labels():
    stream = TaskStream(toy([5, 5, 5, 5]), StreamOptions(step=1, validation=0))
    other = TaskStream(toy([3], names=["new"]), StreamOptions(validation=0), offset_classes=4)
    few = stream.task(2).train.subset([3, 0])
    assert few.names() == [stream.task(2).train.names()[i] for i in (3, 0)]
    both = LabeledDataset.concat([few, other.task(0).train, stream.task(1).train])
    assert both.labels.tolist() == [2, 2, 4, 4, 4, 1, 1, 1, 1, 1]
    assert [both.raw(i).getpixel((0, 0))[0] for i in range(len(both))] == [2, 2, 0, 0, 0, 1, 1, 1, 1, 1]
    assert both.class_counts() == {1: 5, 2: 2, 4: 3}
    again = LabeledDataset.concat([both, both.subset(torch.tensor([2]))])
    assert again.names()[-1] == both.names()[2]
    with pytest.raises(InputError, match="list is empty"):
        LabeledDataset.concat([])
    with pytest.raises(InputError, match="same transform"):
        LabeledDataset.concat([few, few.with_transform(EvalTransform(4))])


def test_digest_names_the_split_not_its_order():
    train = TaskStream(toy([5, 5]), StreamOptions(step=2)).task(0).train
    shuffled = train.subset(list(reversed(range(len(train)))))
    assert train.digest() == shuffled.digest()
    assert train.digest() != train.subset(range(len(train) - 1)).digest()
    moved = TaskStream(toy([5, 5]), StreamOptions(step=2), offset_classes=1).task(0).train
    assert moved.digest() != train.digest()


def test_describe_is_json_and_complete():
    stream = TaskStream(toy([5, 5, 5]), StreamOptions(step=2, order="seeded"))
    record = json.loads(json.dumps(stream.describe()))
    assert record["source"] == "toy"
    assert record["class_order"] == stream.class_names
    assert [task["counts"] for task in record["tasks"]] == [
        {"train": 8, "validation": 2, "test": 4},
        {"train": 4, "validation": 1, "test": 2},
    ]
    assert record["tasks"][1]["digests"]["test"] == stream.test(1).digest()
    assert record["options"]["order"] == "seeded"


def test_natural_order():
    names = ["img10", "b", "img2", "A", "a", "2", "10", ""]
    assert sorted(names, key=natural_key) == ["", "2", "10", "A", "a", "b", "img2", "img10"]


def test_digits():
    source = open_source("digits", seed=1)
    assert isinstance(source, Source)
    assert source.class_names == [str(i) for i in range(10)]
    assert source.augment == "glyph"
    assert len(source.train) + len(source.test) == 1797
    counts = np.bincount(source.test.labels)
    assert counts.min() >= 43
    assert counts.max() <= 45
    names = {source.train.name(i) for i in range(len(source.train))}
    assert not names & {source.test.name(i) for i in range(len(source.test))}
    image = source.train.load(0)
    assert image.mode == "RGB"
    assert image.size == (8, 8)
    assert max(np.asarray(source.train.load(i)).max() for i in range(20)) == 255
    other = open_source("digits", seed=2)
    assert not np.array_equal(source.test.rows, other.test.rows)
    assert np.array_equal(source.test.rows, open_source("digits", seed=1).test.rows)


def test_the_bundled_digits_are_those_of_scikit_learn():
    expected, labels = load_digits(return_X_y=True)
    images = np.rint(expected * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    source = open_source("digits")
    rows = {}
    for split in (source.train, source.test):
        for i in range(len(split)):
            rows[int(split.rows[i])] = np.asarray(split.load(i)), int(split.labels[i])
    assert sorted(rows) == list(range(len(labels)))
    assert all(np.array_equal(rows[i][0], np.stack([images[i]] * 3, axis=-1)) for i in rows)
    assert [rows[i][1] for i in sorted(rows)] == labels.tolist()


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("digit", {}, "Did you mean 'digits'"),
        ("no/such/folder", {}, "an existing path, not 'no/such/folder'"),
        ("", {}, "an existing path"),
        ("hub:", {}, "owner/name"),
        ("digits", {"on_error": "ignore"}, "on_error must be 'raise'"),
        ("digits", {"seed": -1}, "seed must be 0 or more"),
        ("digits", {"classes": 3}, "classes applies to glyphs data only"),
        ("digits", {"label_column": "y"}, "label_column applies to table and hub"),
        ("digits", {"task_folders": True}, "task_folders applies to folder"),
    ],
)
def test_open_source_refuses(spec, options, message):
    with pytest.raises(InputError, match=message):
        open_source(spec, **options)


def test_open_source_glyphs():
    assert len(open_source("glyphs", classes=3, seed=4).class_names) == 3


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_arrays_channels(channels):
    shape = (4, 5, 6) if channels is None else (4, 5, 6, channels)
    source = arrays(np.full(shape, 7, np.uint8), [3, 3, 9, 9])
    image = source.train.load(0)
    assert (image.mode, image.size) == ("RGB", (6, 5))
    assert source.class_names == ["3", "9"]
    assert image.getpixel((0, 0)) == ((7,) * 3 if channels != 4 else (248,) * 3)


def test_arrays_of_different_sizes():
    source = arrays([np.zeros((4, 5), np.uint8), np.zeros((9, 7, 3), np.uint8)], [0, 1])
    assert [source.train.load(i).size for i in range(2)] == [(5, 4), (7, 9)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([[0.5]], [0]), InputError, "given float64"),
        ((np.zeros((2, 3, 3)), [0, 1]), InputError, "Scale floats"),
        ((np.zeros((2, 3, 3, 2), np.uint8), [0, 1]), InputError, "must be uint8"),
        ((np.zeros((2, 3, 3), np.uint8), [0]), InputError, "2 images and 1 labels"),
        ((np.zeros((2, 3, 3), np.uint8), [0.5, 1]), InputError, "list of integers"),
        ((np.zeros((2, 3, 3), np.uint8), [0, 1], np.zeros((1, 3, 3), np.uint8)), InputError, "come together"),
        (
            (np.zeros((2, 3, 3), np.uint8), [0, 1], np.zeros((1, 3, 3), np.uint8), [5]),
            DataError,
            r"none for \[5\]",
        ),
    ],
)
def test_arrays_refuse(arguments, error, message):
    images = [np.array(image) for image in arguments[0]] if isinstance(arguments[0], list) else arguments[0]
    with pytest.raises(error, match=message):
        arrays(images, *arguments[1:])


def test_arrays_labels_need_names():
    with pytest.raises(DataError, match=r"0\.\.1.*from 0 to 2"):
        arrays(np.zeros((2, 3, 3), np.uint8), [0, 2], class_names=["a", "b"])


NOTHING = np.empty(0, np.uint64)


def test_scorable_samples_are_labelled_as_learned():
    source = toy([3, 3], names=["b", "c"])
    samples, notes = scorable(source, ["a", "b", "c"], NOTHING)
    assert samples.labels.tolist() == [1, 1, 2, 2]
    assert not notes
    source.test_was_cut = True
    assert len(scorable(source, ["a", "b", "c"], NOTHING)[0]) == 10
    source.test = None
    samples, notes = scorable(source, ["a", "b", "c"], NOTHING)
    assert len(samples) == 6
    assert "all its 6 images" in notes[0]
    with pytest.raises(DataError, match=r"toy has 'c'.*eval\.unknown=skip"):
        scorable(source, ["a", "b"], NOTHING)


def test_classes_that_were_not_learned_are_left_out_where_that_is_asked_for():
    source = toy([3, 3, 3], names=["b", "c", "d"])
    samples, notes = scorable(source, ["a", "d", "b"], NOTHING, skip_unknown=True)
    assert samples.labels.tolist() == [2, 2, 1, 1]
    everything, _ = scorable(source, ["b", "c", "d"], NOTHING)
    assert samples.names() == [name for i, name in enumerate(everything.names()) if i not in (2, 3)]
    assert notes == ["2 images of classes that were not learned are left out: 'c'."]
    source.test = None
    samples, notes = scorable(source, ["b"], NOTHING, skip_unknown=True)
    assert len(samples) == 3
    assert notes == [
        "6 images of classes that were not learned are left out: 'c', 'd'.",
        "toy has no test split of its own: all its 3 images are scored.",
    ]
    with pytest.raises(DataError, match="toy has 'b', 'c', 'd'"):
        scorable(source, ["x"], NOTHING, skip_unknown=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_learned_from_is_not_scored_whatever_it_is_called_now(seed):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 4, 4), dtype=np.uint8)
    labels = np.repeat([0, 1], 10)
    source = arrays(pixels, labels)
    used = TaskStream(source, StreamOptions(step=2, validation=0, limit_per_class=6, seed=seed)).task(0).train
    renamed = arrays(pixels[::-1], labels[::-1], name="again")
    samples, notes = scorable(renamed, ["0", "1"], used.fingerprints())
    assert len(samples) == 8
    assert not set(samples.fingerprints().tolist()) & set(used.fingerprints().tolist())
    assert notes == ["12 of the 20 images of again were learned from or validated on; the other 8 are scored."]
    with pytest.raises(DataError, match=r"20 of the 20 images of again were .* nothing else to score"):
        scorable(renamed, ["0", "1"], scorable(source, ["0", "1"], NOTHING)[0].fingerprints())
    # A test split of its own is scored whole, or figures on it would not compare; but not without a word.
    own = arrays(pixels[:4], labels[:4], pixels[3:], labels[3:], class_names=["0", "1"], name="own")
    samples, notes = scorable(own, ["0", "1"], used.fingerprints())
    assert len(samples) == 17
    assert "test images of own were learned from or validated on, and are scored all the same" in notes[0]


def test_digest_tells_contents_apart():
    pixels = np.zeros((4, 4, 4), np.uint8)
    source, other = arrays(pixels, [0, 0, 1, 1]), arrays(pixels + 1, [0, 0, 1, 1])
    one, two = (TaskStream(s, StreamOptions(step=2, validation=0)).task(0).train for s in (source, other))
    assert one.names() == two.names()
    assert one.digest() != two.digest()


def test_shuffles_depend_on_class_name_seed_and_purpose():
    rows = np.arange(50)
    orders = [
        shuffled(rows, "a", 0),
        shuffled(rows, "b", 0),
        shuffled(rows, "a", 1),
        shuffled(rows, "a", 0, 1),
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(orders[0], shuffled(rows, "a", 0))


def test_a_limit_on_test_images_keeps_the_same_ones_whatever_the_seed():
    source = open_source("digits")
    a, b, full = (
        TaskStream(source, StreamOptions(step=5, seed=s, test_limit_per_class=k)).test(1)
        for s, k in ((0, 7), (5, 7), (0, None))
    )
    assert a.class_counts() == dict.fromkeys(range(5, 10), 7)
    assert a.names() == b.names()
    assert set(a.names()) < set(full.names())


def test_a_limit_per_task_is_shared_by_what_classes_have():
    assert allotted([50, 30, 20], 10) == [5, 3, 2]
    assert allotted([17, 13], 10) == [6, 4]
    assert allotted([5, 3], 10) == [5, 3]
    assert allotted([1, 1, 1], 2 + 1) == [1, 1, 1]
    assert allotted([100, 1, 1], 10) == [8, 1, 1]
    assert allotted([7, 7, 7], 10) == [4, 3, 3]
    assert allotted([10, 0, 10], 4) == [2, 0, 2]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(8, 900))
def test_allotted_shares_add_up(counts, limit):
    kept = allotted(counts, limit)
    assert sum(kept) == min(limit, sum(counts))
    assert all(1 <= k <= n for k, n in zip(kept, counts, strict=True))


def test_a_limit_per_task_cuts_training_and_test():
    source = open_source("digits")
    stream = TaskStream(source, StreamOptions(step=5, validation=0, limit_per_task=52, test_limit_per_task=21))
    full = TaskStream(source, StreamOptions(step=5, validation=0))
    for i in range(2):
        assert len(stream.task(i).train) == 52
        assert len(stream.test(i)) == 21
        assert min(stream.task(i).train.class_counts().values()) >= 9
        assert set(stream.test(i).names()) < set(full.test(i).names())
    with pytest.raises(
        InputError,
        match=r"^limit_per_task must be at least the number of classes.*it is 3, and a task has 5",
    ):
        TaskStream(source, StreamOptions(step=5, limit_per_task=3))
    with pytest.raises(InputError, match=r"^test_limit_per_task must be at least the number of classes"):
        TaskStream(source, StreamOptions(step=5, test_limit_per_task=3)).test(0)


def test_labels_beyond_64_bits_are_refused():
    with pytest.raises(InputError, match="train labels must be integers of at most 63 bits, not 9223372036854775813"):
        arrays(np.zeros((2, 4, 4), np.uint8), np.array([2**63 + 5, 1], np.uint64))


@pytest.mark.parametrize("shape", [(2, 0, 4), (2, 4, 0, 3)])
def test_images_without_pixels_are_refused(shape):
    with pytest.raises(InputError, match="train images must be uint8"):
        arrays(np.zeros(shape, np.uint8), [0, 1])
