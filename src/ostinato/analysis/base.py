"""Base of analyses: their subject, their findings, and the samples that they read."""

from __future__ import annotations

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
from ostinato.report.tables import write_csv
from ostinato.runs.build import make_stream
from ostinato.runs.rundir import RunDir
from ostinato.streams import LabeledDataset
from ostinato.training.loader import fixed_batches
from ostinato.training.precision import compute


@dataclass(frozen=True)
class Findings:
    """Result of an analysis.

    Attributes:
        columns: column names of the table.
        rows: rows of the table.
        draw: writes the figure to a path.
        notes: remarks for the reader.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    draw: Callable[[Path], None]
    notes: tuple[str, ...] = ()

    def write_csv(self, path: Path) -> None:
        """Write the table, floats with nine digits, which distinguish all fp32 numbers."""
        rows = ([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in self.rows)
        write_csv(path, self.columns, rows)


@dataclass(frozen=True)
class Subject:
    """Input of an analysis.

    Attributes:
        run: directory of the run or artifact.
        learner: learner of the run.
        images: image files.
        data: path of the run's data, if they moved.
        task: task to show, from 1; None for all.
        head: attention head to show; None for the mean over heads.
    """

    run: Path
    learner: Learner
    images: Sequence[Path] = ()
    data: str | None = None
    task: int | None = None
    head: int | None = None

    @property
    def method(self) -> Method:
        """Learned method."""
        return self.learner.method

    @property
    def title(self) -> str:
        """Name of the run in figures."""
        return f"{self.method.name} ({self.run.resolve().name})"

    def held_out(self) -> list[LabeledDataset]:
        """Open the test samples of the run, task by task, without those of continuations.

        Raises:
            InputError: if the artifact has no run, or the data are not those of the run.
            DataError: if there are no test samples.
        """
        dirs = RunDir(self.run)
        moved = {"data": {"path": self.data}} if self.data is not None else {}
        config = build_config(dirs.read_config().to_dict(), moved)
        stream = make_stream(config, None)
        known = self.learner.class_names
        if stream.class_names != known[: len(stream.class_names)]:
            raise InputError(
                f"{self.run}: the classes of data={config.data.path} must be the ones that the run learned, in their "
                "order, none renamed, removed or merged since. Give the path of its data as data=PATH; for a "
                "continuation, analyse the run that it continues."
            )
        split = config.eval.split
        groups = [stream.task(i).validation if split == "validation" else stream.test(i) for i in range(len(stream))]
        if not any(len(group) for group in groups):
            raise DataError(f"{config.data.path}: the {split} split must have images, got none.")
        recorded = [task.digests.get(split) for task in dirs.read_record().stream.tasks]
        if recorded != [group.digest() for group in groups]:
            raise InputError(
                f"{self.run}: the {split} images of data={config.data.path} must be those that the run was scored on; "
                "others may have been trained on. Restore the data, or give their path as data=PATH."
            )
        return groups

    @torch.inference_mode()
    def each_batch(
        self, groups: Sequence[LabeledDataset], read: Callable[[Tensor], Tensor]
    ) -> Iterator[tuple[int, Tensor]]:
        """Apply ``read`` to the images of every group, batch by batch.

        Args:
            groups: samples by group.
            read: maps images (B, 3, S, S) to values (B, ...).

        Yields:
            Index of the group, and values of a batch on the CPU.
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
        """List the index, from 0, of the chosen task, or all.

        Raises:
            InputError: if there is no such task.
        """
        n = self.method.n_tasks
        if self.task is None:
            return list(range(n))
        if not 1 <= self.task <= n:
            raise InputError(f"task must lie in [1, {n}], the learned tasks, got {self.task}.")
        return [self.task - 1]


@dataclass(frozen=True)
class Analysis:
    """A kind of analysis.

    Attributes:
        name: name on the command line and of the files.
        shows: description of the figure in a line.
        supports: tells whether a method has the hooks.
        find: computes the findings.
        takes: options that it uses, of "images", "data", "task" and "head".
    """

    name: str
    shows: str
    supports: Callable[[Method], bool]
    find: Callable[[Subject], Findings]
    takes: tuple[str, ...] = ()


def having(*hooks: str) -> Callable[[Method], bool]:
    """Make a test for methods that have all named hooks."""
    return lambda method: all(callable(getattr(method, hook, None)) for hook in hooks)


def numbered(n: int, first: int = 0) -> list[str]:
    """Labels of n layers from 0, or of n tasks from ``first`` = 1."""
    return [str(first + i) for i in range(n)]
