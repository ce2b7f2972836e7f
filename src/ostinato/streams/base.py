"""Class-incremental tasks: a source's classes in an order, cut into consecutive ranges.

A label is a position in the stream's class order, so that tasks are consecutive ranges of labels. The split into
training and validation samples depends on the seed and the name of the class alone: two orders of the same source
train and validate on the same samples.
"""

import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, ValidationError
from torch import Tensor

from ostinato.errors import DataError, InputError, did_you_mean
from ostinato.sections import SplitSection, StreamSection
from ostinato.streams.dataset import LabeledDataset, Samples, Transform
from ostinato.streams.known import KnownSamples, Twins, known_labels
from ostinato.streams.source import Source, Split, allotted, held_out_count, listed, shuffled
from ostinato.validation import describe_validation

__all__ = ["LabeledDataset", "Samples", "Source", "Split", "StreamOptions", "Task", "TaskStream", "Transform"]

_TEST = 1
"""Salt of the choice of test images."""


class StreamOptions(SplitSection, StreamSection):
    """Options that turn a source into a stream of tasks.

    Args:
        options: ``seed``, and fields of :class:`ostinato.sections.StreamSection` and
            :class:`ostinato.sections.SplitSection`.

    Attributes:
        seed: of the order "seeded", the validation split, the limit and the augmentation.

    Raises:
        InputError: if an option is unknown, has a wrong value, or contradicts another.
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
            raise InputError("tasks already lists the classes of each task: leave out first, step and order.")


@dataclass(frozen=True)
class Task:
    """All that a method may know about a task.

    Attributes:
        index: of the task, from 0.
        classes: labels of the task.
        class_names: names of these labels.
        n_seen: classes up to and including this task.
        train: training samples.
        validation: samples for model selection; may be empty.
        augment: training augmentation that suits the source: "photo", "glyph" or "none".
        known: more training samples of classes of earlier tasks, learned before the classes of the task; None without.
        known_validation: more samples of these for model selection.
    """

    index: int
    classes: range
    class_names: tuple[str, ...]
    n_seen: int
    train: LabeledDataset
    validation: LabeledDataset
    augment: str = "photo"
    known: LabeledDataset | None = None
    known_validation: LabeledDataset | None = None


class TaskStream:
    """A source cut into tasks, with the class order, the labels and, for the evaluator, the test data.

    A stream that continues another may bring more samples of the classes learned before. They belong to its first task
    as :attr:`Task.known`, which has no classes of its own where all are known.

    Args:
        source: the samples.
        options: how to cut them.
        offset_classes: classes learned before, where this stream continues another: labels start here.
        offset_tasks: tasks learned before.
        known: names of the classes learned before, by label.
        used: sorted fingerprints of samples learned before; those of known classes are left out.
        twins: meaning of a name that differs from a known one in case, spaces or forms of characters alone: "refuse"
            it, or take it as the "known" class or a "new" one.

    Attributes:
        class_names: names of the new classes, in order.
        known_names: names of the known classes with more samples, in order of their labels.
        repeated: number of samples of known classes that were left out.

    Raises:
        InputError: if the options do not fit the source.
        DataError: if a class has no training image or is the only one, a name is nearly a known one, or nothing is new.
    """

    def __init__(
        self,
        source: Source,
        options: StreamOptions,
        *,
        offset_classes: int = 0,
        offset_tasks: int = 0,
        known: Sequence[str] = (),
        used: np.ndarray | None = None,
        twins: Twins = "refuse",
    ):
        self.source = source
        self.options = options
        self.offset_classes, self.offset_tasks = offset_classes, offset_tasks
        label_of = known_labels(source.class_names, known, twins, source.name)
        groups, again = _groups(source, options, label_of)
        self.class_names = [source.class_names[label] for group in groups for label in group]
        more = KnownSamples(source, sorted((label_of[source.class_names[i]], i) for i in again), used)
        self.known_names, self.repeated = [known[label] for label in more.labels], more.repeated
        _check_classes(source, self.class_names, offset_classes, more)
        groups = groups or [[]]  # a task for the samples of known classes
        ends = np.cumsum([len(group) for group in groups]).tolist()
        self._ranges = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]
        self._order = [label for group in groups for label in group]
        rows = [np.flatnonzero(source.train.labels == label) for label in self._order]
        train, self._validation = self._split(rows, self.class_names)
        self._train = [rows for places in self._ranges for rows in self._limited([train[p] for p in places])]
        self._known = more
        train, self._known_validation = self._split(more.train, [source.class_names[i] for i in more.places])
        self._known_train = self._limited(train)

    def _split(self, rows: list[np.ndarray], names: list[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Shuffled training rows and sorted validation rows of classes."""
        train: list[np.ndarray] = []
        validation: list[np.ndarray] = []
        for of_class, name in zip(rows, names, strict=True):
            mixed = shuffled(of_class, name, self.options.seed)
            n = held_out_count(len(mixed), self.options.validation)
            validation.append(np.sort(mixed[:n]))
            train.append(mixed[n:])
        return train, validation

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[Task]:
        return (self.task(i) for i in range(len(self)))

    def task(self, i: int) -> Task:
        """Task ``i`` of this stream, with the index and labels of the whole sequence."""
        places = self._places(i)
        start = self.offset_classes
        first = i == 0 and bool(self.known_names)
        return Task(
            index=self.offset_tasks + i,
            classes=range(start + places.start, start + places.stop),
            class_names=tuple(self.class_names[places.start : places.stop]),
            n_seen=start + places.stop,
            train=self._dataset(self.source.train, places, [self._train[p] for p in places]),
            validation=self._dataset(self.source.train, places, [self._validation[p] for p in places]),
            augment=self.source.augment,
            known=self._known_dataset(self.source.train, self._known_train) if first else None,
            known_validation=self._known_dataset(self.source.train, self._known_validation) if first else None,
        )

    def known_test(self) -> LabeledDataset | None:
        """Test samples of the known classes with more samples; None without any, or without a test split."""
        if not self.known_names or self.source.test is None:
            return None
        names = [self.source.class_names[i] for i in self._known.places]
        rows = [shuffled(rows, name, seed=0, salt=_TEST) for rows, name in zip(self._known.test, names, strict=True)]
        return self._known_dataset(self.source.test, self._limited(rows, "test_"))

    def test(self, i: int) -> LabeledDataset:
        """All test samples of the classes of task ``i``; for the evaluator alone.

        Raises:
            IndexError: if there is no such task.
            DataError: if the source has no test split.
        """
        places = self._places(i)
        split = self.source.test
        if split is None:
            raise DataError(f"Evaluation needs test samples, but {self.source.name} has none: add a test split.")
        named = [(self._order[p], self.class_names[p]) for p in places]
        rows = [shuffled(np.flatnonzero(split.labels == label), name, seed=0, salt=_TEST) for label, name in named]
        return self._dataset(split, places, self._limited(rows, "test_"))

    def describe(self) -> dict[str, Any]:
        """JSON-able description of the stream for a run record, without paths of this machine."""
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
        known = {}
        if self.known_names:
            first = self.task(0)
            found = {"train": first.known, "validation": first.known_validation, "test": self.known_test()}
            parts = {key: part for key, part in found.items() if part is not None}
            known = {
                "known": {
                    "classes": list(self.known_names),
                    "counts": {key: len(part) for key, part in parts.items()},
                    "digests": {key: part.digest() for key, part in parts.items()},
                }
            }
        return known | {
            "source": self.source.name,
            "class_order": list(self.class_names),
            "options": self.options.model_dump(),
            "tasks": tasks,
            "skipped": list(self.source.skipped),
            "notes": list(self.source.notes),
        }

    @property
    def label_groups(self) -> Tensor | None:
        """Group of each label of this stream; labels of one group count as the same answer. None without groups."""
        if self.source.label_groups is None:
            return None
        return torch.tensor([self.source.label_groups[label] for label in self._order])

    def _limited(self, rows: list[np.ndarray], of: str = "") -> list[np.ndarray]:
        """The first shuffled rows of each class of a task, in the source's order; ``of`` is the prefix of options."""
        rows = [kept[: getattr(self.options, f"{of}limit_per_class")] for kept in rows]
        counts = [len(kept) for kept in rows]
        limit = getattr(self.options, f"{of}limit_per_task")
        if limit is not None:
            if limit < len(rows):
                raise InputError(
                    f"{of}limit_per_task must be at least the number of classes of each task; it is {limit}, and a "
                    f"task has {len(rows)} classes."
                )
            counts = allotted(counts, limit)
        return [np.sort(kept[:n]) for kept, n in zip(rows, counts, strict=True)]

    def _places(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise IndexError(f"task {i} of a stream of {len(self)}")
        return self._ranges[i]

    def _dataset(self, split: Split, places: range, rows: list[np.ndarray]) -> LabeledDataset:
        return self._labeled(split, self.offset_classes + np.asarray(places, np.int64), rows)

    def _known_dataset(self, split: Split, rows: list[np.ndarray]) -> LabeledDataset:
        return self._labeled(split, np.asarray(self._known.labels), rows)

    def _labeled(self, split: Split, labels: np.ndarray, rows: list[np.ndarray]) -> LabeledDataset:
        found = np.concatenate([np.empty(0, np.int64), *rows])
        return LabeledDataset(split, found, np.repeat(labels, [len(part) for part in rows]), seed=self.options.seed)


def _groups(source: Source, options: StreamOptions, known: Mapping[str, int]) -> tuple[list[list[int]], list[int]]:
    """The source's labels of new classes, task by task, in stream order, and those of known classes."""
    if options.tasks is not None:
        named = _named_groups(source, options)
        again = [label for group in named for label in group if source.class_names[label] in known]
        fresh = [[label for label in group if source.class_names[label] not in known] for group in named]
        return [group for group in fresh if group], again
    again = [label for label, name in enumerate(source.class_names) if name in known]
    new = [label for label, name in enumerate(source.class_names) if name not in known]
    n = len(new)
    step = options.step or (10 if n >= 50 else max(1, math.ceil(n / 5)))
    first = options.first or step
    if options.first is not None and options.first > n:
        raise InputError(
            f"first must be at most the {n} {'new ' if known else ''}classes of {source.name}, not {options.first}."
        )
    if not n:
        return [], again
    order = list(range(n))
    if options.order == "seeded":
        rng = np.random.default_rng([options.seed, zlib.crc32(b"class order")])
        order = rng.permutation(n).tolist()
    elif options.order == "seed1993":
        order = np.random.RandomState(1993).permutation(n).tolist()
    starts = [0, *range(first, n, step)]
    return [[new[i] for i in order[start:stop]] for start, stop in zip(starts, [*starts[1:], n], strict=True)], again


def _named_groups(source: Source, options: StreamOptions) -> list[list[int]]:
    tasks = source.task_names if options.tasks == "folders" else options.tasks
    if tasks is None:
        raise InputError(
            f"tasks='folders' needs a folder per task (ROOT/<task>/<class>/), but {source.name} has none: "
            "open the folder with task_folders=True, or list the classes of each task."
        )
    label_of = {name: label for label, name in enumerate(source.class_names)}
    names = [name for task in tasks for name in task]
    unknown = [name for name in names if name not in label_of]
    if unknown:
        hint = did_you_mean(unknown[0], source.class_names)
        raise InputError(f"tasks: {source.name} has no class {', '.join(map(repr, unknown))}. {hint}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"A class belongs to one task, but tasks lists twice: {', '.join(map(repr, twice))}.")
    if not tasks or not all(tasks):
        raise InputError("Each task needs at least one class, but tasks is empty or holds an empty list.")
    return [[label_of[name] for name in task] for task in tasks]


def _check_classes(source: Source, names: list[str], offset: int, more: KnownSamples) -> None:
    if not names and not more.labels:
        raise DataError(
            f"There must be a sample to learn, but all {more.repeated} of {source.name} are of known classes and were "
            "learned before. Add new ones."
        )
    if offset + len(names) < 2:
        raise DataError(f"Telling classes apart takes at least two, but {source.name} holds only {names}.")
    twice = [name for name, count in Counter(source.class_names).items() if count > 1]
    if twice:
        raise DataError(f"Class names must differ, but {source.name} has duplicates:{listed(twice)}")
    counts = np.bincount(source.train.labels, minlength=len(source.class_names))
    wanted = set(names)
    empty = [name for name, n in zip(source.class_names, counts, strict=True) if n == 0 and name in wanted]
    if empty:
        raise DataError(f"Each class needs a training image; in {source.name} these have none:{listed(empty)}")


def scorable(
    source: Source, class_names: Sequence[str], used: np.ndarray, *, skip_unknown: bool = False
) -> tuple[LabeledDataset, list[str]]:
    """Samples of learned classes that were not used for learning.

    A test split of the source is scored as it is, so that results compare with others on it. Without one, all samples
    that were not used are scored.

    Args:
        source: all its classes must be known, unless others are skipped.
        class_names: position = label.
        used: fingerprints of the samples used for learning, see :meth:`LabeledDataset.fingerprints`.
        skip_unknown: leave out classes that were not learned.

    Returns:
        The samples with the labels learned, and notes on the choice.

    Raises:
        DataError: if the source has an unknown class that must not be skipped, or nothing to score.
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
    note = f"{n} of the {total} {'test ' if own_test else ''}{kind}s of {source.name} were learned from or validated on"
    if own_test:
        return samples, [*notes, f"{note}, and are scored all the same."] if n else notes
    if n == total:
        raise DataError(f"{note}: there is nothing else to score.")
    if n:
        note += f"; the other {total - n} are scored."
    else:
        note = f"{source.name} has no test split of its own: all its {total} {kind}s are scored."
    return samples.subset(np.flatnonzero(~again)), [*notes, note]
