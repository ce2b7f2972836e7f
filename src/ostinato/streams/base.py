"""Tasks: a source's classes in an order, cut into consecutive ranges, each with its own samples.

A label is a position in the stream's class order, so that tasks are consecutive ranges of labels. Which
sample is for training and which for validation depends on the seed and the name of its class alone: two
orders of the same source train and validate on the same samples.
"""

import copy
import hashlib
import math
import operator
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor
from torch.utils.data import Dataset

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.sections import SplitSection, StreamSection
from ostinato.streams.source import Source, Split, allotted, held_out_count, listed, shuffled
from ostinato.validation import describe_validation

__all__ = ["LabeledDataset", "Samples", "Source", "Split", "StreamOptions", "Task", "TaskStream", "Transform"]


class Transform(Protocol):
    """Sample to tensor; random where it is given a generator, always the same without.

    For samples of varying size it also has ``tokens(sample)``, the size of one, ``longest``, the largest size, and
    ``join(tensors)``, which makes a batch.

    Attributes:
        modality: of the samples that it takes, see :class:`Split`.
    """

    modality: str

    def __call__(self, sample: Any, rng: np.random.Generator | None = None, /) -> Tensor:
        """See a sample."""
        ...


_CHUNK = 64
"""Samples that a thread reads at a time."""

_TEST = 1
"""Salt of the choice of test images."""

BACKBONES = {"image": "vit_base_patch16_224.augreg_in21k", "text": "bert-base-uncased, or the folder of a text encoder"}
"""Backbones to name to somebody who took one of the other kind."""


class StreamOptions(SplitSection, StreamSection):
    """How a source becomes a stream of tasks: the options of two sections and a seed.

    Args:
        options: ``seed``, and fields of :class:`ostinato.sections.StreamSection` and
            :class:`ostinato.sections.SplitSection`.

    Attributes:
        seed: of the order "seeded", the validation split, the limit and the augmentation.

    Raises:
        InputError: an unknown option, a wrong value, or options that contradict each other.
    """

    model_config = ConfigDict(frozen=True)
    seed: int = Field(0, ge=0)

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise InputError(describe_validation(error, "", list(type(self).model_fields))) from None
        cut = self.first is not None or self.step is not None or self.order != "natural"
        if self.tasks is not None and cut:
            raise InputError("tasks already says which classes come when: leave out first, step and order.")


class Samples(Protocol):
    """Inputs with their labels, by position or by another key that the data set knows."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, key: Any, /) -> tuple[Tensor, int]:
        """A sample and its label."""
        ...


class LabeledDataset(Dataset[tuple[Tensor, int]]):
    """Labelled samples seen through a transform.

    Indexing by ``i`` gives the deterministic transform of sample ``i``; indexing by ``(i, draw)`` gives a random
    one, drawn from ``np.random.default_rng([seed, i, draw])``: the same key, the same tensor, in any process.
    """

    def __init__(
        self, split: Split, rows: np.ndarray, labels: np.ndarray, *, seed: int, transform: Transform | None = None
    ):
        """Take rows of a split.

        Args:
            split: where samples come from.
            rows: positions in it.
            labels: the stream's label of each.
            seed: of the random transforms.
            transform: sample to tensor; needed before indexing.
        """
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.seed = seed
        self.transform = transform
        self._sizes: list[int] | None = None
        self._splits: tuple[Split, ...] = (split,)
        self._split_of = np.zeros(len(rows), dtype=np.int64)
        self._rows = np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = key if isinstance(key, tuple) else (key, None)
        index = self._position(index)
        if self.transform is None:
            raise InputError("A data set needs a transform before it is read: call with_transform(EvalTransform(224)).")
        rng = None if draw is None else np.random.default_rng([self.seed, index, draw])
        return self.transform(self.raw(index), rng), int(self.labels[index])

    def raw(self, index: int) -> Any:
        """What lies behind a sample.

        Args:
            index: position in these examples.

        Returns:
            An RGB image at its own size, or a text.
        """
        index = self._position(index)
        return self._splits[self._split_of[index]].load(int(self._rows[index]))

    def with_transform(self, transform: Transform) -> "LabeledDataset":
        """The same samples seen through another transform.

        Args:
            transform: sample to tensor.

        Returns:
            A shallow copy.

        Raises:
            InputError: if it takes another kind of samples.
        """
        if transform.modality != self.modality:
            raise InputError(
                f"These data hold {self.modality}s, but the backbone takes {transform.modality}s: choose another, "
                f"such as {BACKBONES[self.modality]}."
            )
        other = copy.copy(self)
        other.transform, other._sizes = transform, None
        return other

    @property
    def modality(self) -> str:
        """What the samples are: "image" or "text"."""
        return self._splits[0].modality

    def sizes(self) -> list[int] | None:
        """Tokens of each sample under the transform; None where all have as many."""
        tokens = getattr(self.transform, "tokens", None)
        if tokens is not None and self._sizes is None:  # asked for in every epoch, and after every task
            self._sizes = [tokens(self.raw(i)) for i in range(len(self))]
        return self._sizes

    @property
    def longest(self) -> int:
        """The most tokens that a sample may have under the transform, where they differ."""
        return self.transform.longest  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Samples as one batch: inputs (B, ...), filled up where they differ in size, and labels (B,)."""
        inputs = [x for x, _ in samples]
        join = getattr(self.transform, "join", torch.stack)
        return join(inputs), torch.tensor([y for _, y in samples])

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "LabeledDataset":
        """Some of the samples.

        Args:
            indices: positions in these examples.

        Returns:
            A copy that holds them in the given order.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        other = copy.copy(self)
        other.labels = self.labels[torch.from_numpy(chosen)]
        other._split_of = self._split_of[chosen]
        other._rows = self._rows[chosen]
        other._sizes = None if self._sizes is None else [self._sizes[i] for i in chosen]
        return other

    @staticmethod
    def concat(parts: "list[LabeledDataset]") -> "LabeledDataset":
        """Samples one after another.

        Args:
            parts: at least one, all with the same transform (or none); the first gives the seed.

        Returns:
            All their samples.

        Raises:
            InputError: if there are no parts, or two bring different transforms.
        """
        if not parts:
            raise InputError("concat needs at least one part; it was given an empty list.")
        other = copy.copy(parts[0])
        if any(part.transform != other.transform for part in parts):
            raise InputError("concat needs parts with the same transform: call with_transform() on the result.")
        sizes = np.cumsum([0, *(len(part._splits) for part in parts)])
        other.labels = torch.cat([part.labels for part in parts])
        other._splits = tuple(split for part in parts for split in part._splits)
        other._split_of = np.concatenate([part._split_of + n for part, n in zip(parts, sizes, strict=False)])
        other._rows = np.concatenate([part._rows for part in parts])
        known = [part._sizes for part in parts]
        other._sizes = None if None in known else [n for sizes in known if sizes is not None for n in sizes]
        return other

    def names(self) -> list[str]:
        """The name of each sample, in order."""
        pairs = zip(self._split_of, self._rows, strict=True)
        return [self._splits[split].name(int(row)) for split, row in pairs]

    def fingerprints(self) -> np.ndarray:
        """A number (n,) uint64 for what each sample holds, see :meth:`Split.fingerprint`."""

        def some(rows: range) -> list[int]:
            return [self._splits[self._split_of[i]].fingerprint(int(self._rows[i])) for i in rows]

        parts = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # files are waited for
            return np.array([n for part in pool.map(some, parts) for n in part], np.uint64)

    def digest(self) -> str:
        """Fingerprint for records: SHA-256 over the sorted names, labels and contents, in whatever order."""
        samples = zip(self.names(), self.labels.tolist(), self.fingerprints().tolist(), strict=True)
        lines = sorted(f"{name}\t{label}\t{content:016x}\n" for name, label, content in samples)
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def class_counts(self) -> dict[int, int]:
        """Samples per label, by label; labels without any are left out."""
        return dict(sorted(Counter(self.labels.tolist()).items()))

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index % len(self)


@dataclass(frozen=True)
class Task:
    """What a method may know about one task.

    Attributes:
        index: of the task, from 0.
        classes: its labels.
        class_names: their names.
        n_seen: classes up to and including this task.
        train: training samples.
        validation: samples for model selection; may be empty.
        augment: training augmentation that suits the source: "photo", "glyph" or "none".
    """

    index: int
    classes: range
    class_names: tuple[str, ...]
    n_seen: int
    train: LabeledDataset
    validation: LabeledDataset
    augment: str = "photo"


class TaskStream:
    """A source cut into tasks: the owner of the order, the labels and, for the evaluator, the test data."""

    def __init__(
        self,
        source: Source,
        options: StreamOptions,
        *,
        offset_classes: int = 0,
        offset_tasks: int = 0,
        known: Sequence[str] = (),
    ):
        """Order the classes and divide the samples.

        Args:
            source: the samples.
            options: how to cut them.
            offset_classes: classes learnt before, where this stream continues another: labels start here.
            offset_tasks: tasks learnt before.
            known: names of the classes learnt before.

        Raises:
            InputError: if the options do not fit the source.
            DataError: if a class is known already, has no training image, or is the only one.
        """
        self.source = source
        self.options = options
        self.offset_classes = offset_classes
        self.offset_tasks = offset_tasks
        groups = _groups(source, options)
        self.class_names = [source.class_names[label] for group in groups for label in group]
        _check_classes(source, self.class_names, offset_classes, known)
        ends = np.cumsum([len(group) for group in groups]).tolist()
        self._ranges = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
        self._order = [label for group in groups for label in group]
        train: list[np.ndarray] = []
        self._validation: list[np.ndarray] = []
        for label, name in zip(self._order, self.class_names, strict=True):
            rows = shuffled(np.flatnonzero(source.train.labels == label), name, options.seed)
            n_validation = held_out_count(len(rows), options.validation)
            self._validation.append(np.sort(rows[:n_validation]))
            train.append(rows[n_validation:])
        self._train = [rows for places in self._ranges for rows in self._limited([train[p] for p in places])]

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[Task]:
        return (self.task(i) for i in range(len(self)))

    def task(self, i: int) -> Task:
        """Task ``i`` of this stream.

        Args:
            i: from 0 within this stream, whatever came before.

        Returns:
            The task, with the index and labels of the whole sequence.

        Raises:
            IndexError: if there is no such task.
        """
        places = self._places(i)
        start = self.offset_classes
        return Task(
            index=self.offset_tasks + i,
            classes=range(start + places.start, start + places.stop),
            class_names=tuple(self.class_names[places.start : places.stop]),
            n_seen=start + places.stop,
            train=self._dataset(self.source.train, places, [self._train[p] for p in places]),
            validation=self._dataset(self.source.train, places, [self._validation[p] for p in places]),
            augment=self.source.augment,
        )

    def test(self, i: int) -> LabeledDataset:
        """Test samples of task ``i``; for the evaluator alone.

        Args:
            i: from 0 within this stream.

        Returns:
            All test samples of the task's classes.

        Raises:
            IndexError: if there is no such task.
            DataError: if the source has no test split.
        """
        places = self._places(i)
        split = self.source.test
        if split is None:
            raise DataError(f"Evaluation needs test images, but {self.source.name} has none: add a test split.")
        named = [(self._order[p], self.class_names[p]) for p in places]
        rows = [shuffled(np.flatnonzero(split.labels == label), name, seed=0, salt=_TEST) for label, name in named]
        return self._dataset(split, places, self._limited(rows, "test_"))

    def describe(self) -> dict[str, Any]:
        """What a run record needs to name this stream: JSON-able, without a path of this machine."""
        tasks = []
        for i, task in enumerate(self):
            parts = {"train": task.train, "validation": task.validation}
            if self.source.test is not None:
                parts["test"] = self.test(i)
            tasks.append(
                {
                    "index": task.index,
                    "classes": list(task.class_names),
                    "labels": [task.classes.start, task.classes.stop],
                    "counts": {key: len(part) for key, part in parts.items()},
                    "digests": {key: part.digest() for key, part in parts.items()},
                }
            )
        return {
            "source": self.source.name,
            "class_order": list(self.class_names),
            "options": self.options.model_dump(),
            "tasks": tasks,
            "skipped": list(self.source.skipped),
            "notes": list(self.source.notes),
        }

    @property
    def label_groups(self) -> Tensor | None:
        """For each label of this stream, a number that classes share which mean the same answer; None if none do."""
        if self.source.label_groups is None:
            return None
        return torch.tensor([self.source.label_groups[label] for label in self._order])

    def _limited(self, rows: list[np.ndarray], of: str = "") -> list[np.ndarray]:
        """The first of the shuffled rows of each class of a task, in the source's order; ``of`` begins options."""
        rows = [some[: getattr(self.options, f"{of}limit_per_class")] for some in rows]
        counts = [len(some) for some in rows]
        limit = getattr(self.options, f"{of}limit_per_task")
        if limit is not None:
            if limit < len(rows):
                raise InputError(
                    f"{of}limit_per_task must leave every class a sample, but a task has {len(rows)} classes and "
                    f"keeps {limit} samples."
                )
            counts = allotted(counts, limit)
        return [np.sort(some[:n]) for some, n in zip(rows, counts, strict=True)]

    def _places(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise IndexError(f"task {i} of a stream of {len(self)}")
        return self._ranges[i]

    def _dataset(self, split: Split, places: range, rows: list[np.ndarray]) -> LabeledDataset:
        labels = np.repeat(self.offset_classes + np.asarray(places), [len(part) for part in rows])
        return LabeledDataset(split, np.concatenate(rows), labels, seed=self.options.seed)


def _groups(source: Source, options: StreamOptions) -> list[list[int]]:
    """The source's labels, task by task, in stream order."""
    if options.tasks is not None:
        return _named_groups(source, options)
    n = len(source.class_names)
    step = options.step or (10 if n >= 50 else math.ceil(n / 5))
    first = options.first or step
    if options.first is not None and options.first > n:
        raise InputError(f"first must be at most the {n} classes of {source.name}, not {options.first}.")
    order = list(range(n))
    if options.order == "seeded":
        rng = np.random.default_rng([options.seed, zlib.crc32(b"class order")])
        order = rng.permutation(n).tolist()
    elif options.order == "seed1993":
        order = np.random.RandomState(1993).permutation(n).tolist()
    starts = [0, *range(first, n, step)]
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], n], strict=True)]


def _named_groups(source: Source, options: StreamOptions) -> list[list[int]]:
    tasks = source.task_names if options.tasks == "folders" else options.tasks
    if tasks is None:
        raise InputError(
            f"tasks='folders' needs a folder per task (ROOT/<task>/<class>/), which {source.name} has not: "
            "open the folder with task_folders=True, or name the classes of each task."
        )
    label_of = {name: label for label, name in enumerate(source.class_names)}
    names = [name for task in tasks for name in task]
    unknown = [name for name in names if name not in label_of]
    if unknown:
        hint = did_you_mean(unknown[0], source.class_names)
        raise InputError(f"tasks names what {source.name} has not: {', '.join(map(repr, unknown))}. {hint}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"A class belongs to one task, but tasks lists twice: {', '.join(map(repr, twice))}.")
    if not tasks or not all(tasks):
        raise InputError("Each task needs at least one class, but tasks is empty or holds an empty list.")
    return [[label_of[name] for name in task] for task in tasks]


def _check_classes(source: Source, names: list[str], offset: int, known: Sequence[str]) -> None:
    again = [name for name in names if name in set(known)]
    if again:
        raise DataError(
            f"A class can be learnt once, but {source.name} brings {len(again)} that are known already:"
            f"{listed(map(repr, again), limit=len(again))}\nRemove or rename them."
        )
    if offset + len(names) < 2:
        raise DataError(f"Telling classes apart takes at least two, but {source.name} holds only {names}.")
    twice = [name for name, count in Counter(source.class_names).items() if count > 1]
    if twice:
        raise DataError(f"Class names must differ, but {source.name} has these twice:{listed(twice)}")
    counts = np.bincount(source.train.labels, minlength=len(source.class_names))
    wanted = set(names)
    empty = [name for name, n in zip(source.class_names, counts, strict=True) if n == 0 and name in wanted]
    if empty:
        raise DataError(f"Each class needs a training image; in {source.name} these have none:{listed(empty)}")


def scorable(
    source: Source, class_names: Sequence[str], used: np.ndarray, *, skip_unknown: bool = False
) -> tuple[LabeledDataset, list[str]]:
    """Samples of classes that were learned under the given names, without those that were learned from.

    A source's own test split is scored as it is, so that the figure compares with others on it. A source without one
    is scored on all of its samples that were not used.

    Args:
        source: all its classes must be known, unless others are skipped.
        class_names: position = label.
        used: fingerprints of what was learned from, see :meth:`LabeledDataset.fingerprints`.
        skip_unknown: leave out classes that were not learned.

    Returns:
        The samples, labelled as learned, and what there is to tell about the choice.

    Raises:
        DataError: if the source has a class that is not known and must not be skipped, or nothing to score.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in source.class_names if name not in label_of]
    named = ", ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if unknown[10:] else "")
    if unknown and (not skip_unknown or len(unknown) == len(source.class_names)):
        raise DataError(
            f"Only classes that were learned can be scored, but {source.name} has {named}. "
            f"{did_you_mean(unknown[0], list(class_names))} Leave out classes that were not learned with "
            "eval.unknown=skip."
        )
    to_label = np.array([label_of.get(name, -1) for name in source.class_names])
    own_test = source.test is not None and not source.test_was_cut
    splits = [s for s in ([source.test] if own_test else [source.train, source.test]) if s is not None]
    everything = LabeledDataset.concat(
        [LabeledDataset(s, np.arange(len(s)), to_label[s.labels], seed=0) for s in splits]
    )
    samples = everything.subset(np.flatnonzero(everything.labels >= 0))
    again = np.isin(samples.fingerprints(), used)
    n, total, kind = int(again.sum()), len(samples), samples.modality
    notes = []
    if unknown:
        notes = [f"{len(everything) - total} {kind}s of classes that were not learned are left out: {named}."]
    told = f"{n} of the {total} {'test ' if own_test else ''}{kind}s of {source.name} were learned from or validated on"
    if own_test:
        return samples, [*notes, f"{told}, and are scored all the same."] if n else notes
    if n == total:
        raise DataError(f"{told}: there is nothing else to score.")
    if n:
        told += f"; the other {total - n} are scored."
    else:
        told = f"{source.name} has no test split of its own: all its {total} {kind}s are scored."
    return samples.subset(np.flatnonzero(~again)), [*notes, told]
