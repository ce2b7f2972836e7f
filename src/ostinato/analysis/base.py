"""What an analysis is: what it may read, and what it hands back to be written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato.config import build_config
from ostinato.errors import DataError, InputError
from ostinato.learner import Learner
from ostinato.methods.base import Method
from ostinato.runs.build import make_stream
from ostinato.runs.rundir import RunDir
from ostinato.streams import LabeledDataset
from ostinato.training.loader import fixed_batches
from ostinato.training.precision import compute


@dataclass(frozen=True)
class Findings:
    """The result of an analysis.

    Attributes:
        columns: of the table.
        rows: its lines.
        draw: makes the picture at a path.
        notes: what the reader should know besides, a sentence each.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    draw: Callable[[Path], None]
    notes: tuple[str, ...] = ()

    def write_csv(self, path: Path) -> None:
        """Write the table; floats with the nine digits that tell all fp32 numbers apart."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.columns)
            writer.writerows([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in self.rows)


@dataclass(frozen=True)
class Subject:
    """What an analysis looks at: a run that was learned, and what the user asked for.

    Attributes:
        run: directory of the run, or of an artifact.
        learner: what was learned.
        images: files to look at.
        data: where the run's data are now; None for where they were.
        task: the only task to show; None for all.
        head: the only attention head to show; None for the mean over heads.
    """

    run: Path
    learner: Learner
    images: Sequence[Path] = ()
    data: str | None = None
    task: int | None = None
    head: int | None = None

    @property
    def method(self) -> Method:
        """The learned method."""
        return self.learner.method

    @property
    def title(self) -> str:
        """How pictures name the run."""
        return f"{self.method.name} ({self.run.resolve().name})"

    def held_out(self) -> list[LabeledDataset]:
        """The samples that the run was scored on, task by task; a continuation's tasks are not among them.

        Raises:
            InputError: if there is no run around the artifact, or the data are not the run's.
            DataError: if there is nothing to score.
        """
        dirs = RunDir(self.run)
        moved = {"data": {"path": self.data}} if self.data is not None else {}
        config = build_config(dirs.read_config().to_dict(), moved)
        stream = make_stream(config, None)
        known = self.learner.class_names
        if stream.class_names != known[: len(stream.class_names)]:
            raise InputError(
                f"{self.run}: the classes of data={config.data.path} must be the ones that the run learned, in their "
                "order. Say where its data are now with data=; of a continuation, analyse the run that it continues."
            )
        split = config.eval.split
        groups = [stream.task(i).validation if split == "validation" else stream.test(i) for i in range(len(stream))]
        if not any(len(group) for group in groups):
            raise DataError(f"{config.data.path}: the {split} split has no images to look at.")
        recorded = [task.digests.get(split) for task in dirs.read_record().stream.tasks]
        if recorded != [group.digest() for group in groups]:
            raise InputError(
                f"{self.run}: the {split} images of data={config.data.path} are not the ones that the run was scored "
                "on; some may have been trained on. Restore the data, or say where they are now with data=."
            )
        return groups

    @torch.inference_mode()
    def each_batch(
        self, groups: Sequence[LabeledDataset], read: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """What ``read`` says about the images of every group.

        Args:
            groups: samples, group by group.
            read: images (B, 3, S, S) to values (B, ...).

        Yields:
            The number of the group and the values of one batch, on the CPU.
        """
        learner, settings = self.learner, self.learner.settings
        learner.method.eval()
        for i, group in enumerate(groups):
            seen = group.with_transform(learner.eval_transform)
            batches = fixed_batches(seen, settings.eval_batch_size, device=settings.device, workers=settings.workers)
            for x, _ in batches:
                with compute(learner.method, settings.device, settings.dtype):
                    values = read(x)
                yield i, values.cpu()

    def chosen_tasks(self) -> list[int]:
        """The task asked for, or all.

        Raises:
            InputError: if there is no such task.
        """
        n = self.method.n_tasks
        if self.task is None:
            return list(range(n))
        if not 0 <= self.task < n:
            raise InputError(f"task={self.task}: must lie in [0, {n - 1}], the tasks that were learned.")
        return [self.task]


@dataclass(frozen=True)
class Analysis:
    """One kind of analysis.

    Attributes:
        name: on the command line, and of the files.
        shows: what the picture shows, in a line.
        supports: whether a method has what it takes.
        find: does the work.
        takes: which of "images", "data", "task" and "head" it makes use of.
    """

    name: str
    shows: str
    supports: Callable[[Method], bool]
    find: Callable[[Subject], Findings]
    takes: tuple[str, ...] = ()


def having(*hooks: str) -> Callable[[Method], bool]:
    """Whether a method has all the named public methods."""
    return lambda method: all(callable(getattr(method, hook, None)) for hook in hooks)


def numbered(n: int) -> list[str]:
    """Labels 0 to n - 1."""
    return [str(i) for i in range(n)]
