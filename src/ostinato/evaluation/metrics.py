"""Accuracy, forgetting and transfer of a run, from integer counts.

``A[t, i]`` is the accuracy on task i's test samples after learning task t, among all classes seen so far.
``docs/metrics.md`` has the formulas, a worked example and the names in other toolboxes.
"""

from __future__ import annotations

import csv
import io
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np

from ostinato.errors import DataError, InputError
from ostinato.files import MAX_JSON, read_regular, write_text

_SAMPLES = "test_samples"


@dataclass
class AccuracyMatrix:
    """Correct predictions on the test samples of each task, after each learned task.

    Each row is one longer than the row before. The first row of a new run has length 1; that of a run from an earlier
    model covers the tasks of the model as well.

    Attributes:
        correct: R rows; ``correct[r][i]`` counts the correct predictions on task i's test samples after learning task
            ``len(correct[r]) - 1``.
        totals: (T,) test samples per task; 0 for a task without any.

    Raises:
        InputError: if the rows given to the constructor could not have been added one by one.
    """

    correct: list[list[int]] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows, totals = self.correct, self.totals
        self.correct, self.totals = [], []
        for row in rows:
            self.add_row(row, totals[: len(row)])
        if len(totals) != self.n_tasks:
            raise InputError(
                f"AccuracyMatrix: totals must have one entry per task of the last row ({self.n_tasks}), got "
                f"{len(totals)}; pass as many totals as the longest row has entries."
            )

    @property
    def n_rows(self) -> int:
        """Number R of rows."""
        return len(self.correct)

    @property
    def n_tasks(self) -> int:
        """Number T of tasks in the last row."""
        return len(self.correct[-1]) if self.correct else 0

    def add_row(self, correct: Sequence[SupportsIndex], totals: Sequence[SupportsIndex]) -> None:
        """Append the counts after a further task.

        Args:
            correct: correct predictions per task seen.
            totals: test samples per task seen; unchanged for earlier tasks.

        Raises:
            InputError: if a length is wrong, a total changed, or a count is not an integer in [0, total].
        """
        row, sizes = _integers("correct", correct), _integers("totals", totals)
        where = f"AccuracyMatrix.add_row: row {self.n_rows}"
        if self.correct and len(row) != self.n_tasks + 1:
            raise InputError(
                f"{where} must be one longer than the row before ({self.n_tasks + 1} entries), got {len(row)}; "
                "add one row per task, with the counts of all tasks seen so far."
            )
        if not row:
            raise InputError(f"{where} must cover at least one task, got no entries.")
        if len(sizes) != len(row):
            raise InputError(f"{where}: totals must have {len(row)} entries, as correct has, got {len(sizes)}.")
        for i, (right, size) in enumerate(zip(row, sizes, strict=True)):
            if not 0 <= right <= size:
                raise InputError(
                    f"{where}, task {i}: correct must be in [0, total], got {right} of {size}; "
                    "pass counts of samples, not fractions or percent."
                )
            if i < len(self.totals) and size != self.totals[i]:
                raise InputError(
                    f"{where}, task {i}: totals must stay as they were ({self.totals[i]}), got {size}; "
                    "evaluate every row on the same test samples."
                )
        self.correct.append(row)
        self.totals = sizes

    def first_row(self, task: int) -> int:
        """The row in [0, R) after learning a task in [0, T), or the first row if the task was learned before it.

        Raises:
            InputError: if no row covers the task.
        """
        if not 0 <= task < self.n_tasks:
            raise InputError(f"AccuracyMatrix.first_row: task must be in [0, {self.n_tasks}), got {task}.")
        return max(0, task - len(self.correct[0]) + 1)

    def values(self) -> np.ndarray:
        """Accuracies A, (R, T) float64 in [0, 1]; NaN for tasks not learned yet or without test samples."""
        out = np.full((self.n_rows, self.n_tasks), np.nan)
        for r, row in enumerate(self.correct):
            for i, right in enumerate(row):
                if self.totals[i]:
                    out[r, i] = right / self.totals[i]
        return out

    def row_accuracy(self, t: int) -> float:
        """Accuracy on the test samples of all tasks seen, ``sum(correct[t]) / sum(totals)``, of row t in [-R, R).

        It is NaN if no task seen has test samples.

        Raises:
            InputError: if there is no such row.
        """
        if not -self.n_rows <= t < self.n_rows:
            raise InputError(f"AccuracyMatrix.row_accuracy: row must be in [{-self.n_rows}, {self.n_rows}), got {t}.")
        row = self.correct[t]
        samples = sum(self.totals[: len(row)])
        return sum(row) / samples if samples else math.nan

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain lists for JSON: ``{"correct": [[...], ...], "totals": [...]}``."""
        return {"correct": [list(row) for row in self.correct], "totals": list(self.totals)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Restore a matrix from :meth:`to_dict`.

        Raises:
            DataError: if keys are missing or the counts do not make a matrix.
        """
        try:
            return cls(correct=list(state["correct"]), totals=list(state["totals"]))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(
                "A saved accuracy matrix must be {'correct': rows of counts, 'totals': counts}, as to_dict "
                f"writes it: {reason}"
            ) from error

    def to_csv(self, path: str | Path) -> None:
        """Write the matrix as a table, whole or not at all; an existing file is replaced.

        The columns are ``after_task, task_0, ..., task_{T-1}, all``, with fractions of 6 digits, empty if undefined, in
        a line per row; ``all`` is :meth:`row_accuracy`. The last line, ``test_samples``, counts the samples per column.
        """
        lines: list[list[object]] = [["after_task", *(f"task_{i}" for i in range(self.n_tasks)), "all"]]
        for r, (row, shares) in enumerate(zip(self.correct, self.values(), strict=True)):
            lines.append([len(row) - 1, *map(_cell, shares), _cell(self.row_accuracy(r))])
        lines.append([_SAMPLES, *self.totals, sum(self.totals)])
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        write_text(Path(path), text.getvalue())

    @classmethod
    def from_csv(cls, path: str | Path) -> Self:
        """Read a matrix from the file of :meth:`to_csv`.

        Counts are exact for tasks of up to 999,999 test samples, and else within 5e-7 of the fraction.

        Raises:
            DataError: if the file cannot be read, is not such a table, or its fractions fit no count.
        """
        path = Path(path)
        try:
            text = read_regular(path, MAX_JSON).decode("utf-8")
            lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"The accuracy matrix {path} cannot be read: {error}.") from error
        n_tasks = len(lines[0]) - 2 if lines else 0
        header = ["after_task", *(f"task_{i}" for i in range(n_tasks)), "all"]
        if not lines or lines[0] != header or lines[-1][0] != _SAMPLES:
            raise DataError(
                f"{path} must start with the line 'after_task,task_0,...,all' and end with a line "
                f"'{_SAMPLES},...', as to_csv writes it; write it again from the run's counts."
            )
        try:
            totals = [int(cell) for cell in lines[-1][1 : n_tasks + 1]]
            rows: list[list[int]] = []
            for line in lines[1:-1]:
                seen = int(line[0]) + 1
                cells = zip(line[1 : seen + 1], totals[:seen], strict=True)
                rows.append([_count(cell, total) for cell, total in cells])
            return cls(correct=rows, totals=totals)
        except (ValueError, IndexError) as error:
            raise DataError(f"{path} holds no accuracy matrix as to_csv writes it: {error}") from error


def summary(matrix: AccuracyMatrix) -> dict[str, float | None]:
    """Summary metrics of a run.

    ``a_r`` is :meth:`AccuracyMatrix.row_accuracy`, ``first(i)`` is :meth:`AccuracyMatrix.first_row`; tasks with
    ``first(i) < R - 1`` are old:

    - ``last_accuracy``: a_{R-1}, over all classes at the end.
    - ``average_accuracy``: mean over r of a_r.
    - ``mean_task_accuracy``: mean over tasks of A[R-1, i].
    - ``forgetting``: mean over old tasks of max_{r >= first(i)} A[r, i] - A[R-1, i], never negative.
    - ``bwt`` (backward transfer): mean over old tasks of A[R-1, i] - A[first(i), i]; forgetting >= -bwt.

    Means leave out tasks without test samples, and rows without any.

    Args:
        matrix: with at least one row.

    Returns:
        Fractions in [0, 1], ``bwt`` in [-1, 1]. None for a mean of nothing; ``forgetting`` and ``bwt`` are None after a
        single task.

    Raises:
        InputError: if the matrix is empty.
    """
    if not matrix.n_rows:
        raise InputError("summary: the accuracy matrix must have at least one row, got none; learn a task first.")
    values = matrix.values()
    seen = [matrix.row_accuracy(r) for r in range(matrix.n_rows)]
    old = [i for i in range(matrix.n_tasks) if matrix.totals[i] and matrix.first_row(i) < matrix.n_rows - 1]
    return {
        "last_accuracy": _mean(seen[-1:]),
        "average_accuracy": _mean(seen),
        "mean_task_accuracy": _mean(values[-1]),
        "forgetting": _mean(values[matrix.first_row(i) :, i].max() - values[-1, i] for i in old),
        "bwt": _mean(values[-1, i] - values[matrix.first_row(i), i] for i in old),
    }


def _mean(values: Iterable[float]) -> float | None:
    """Mean of the numbers that are not NaN; None without any."""
    known = [float(v) for v in values if not math.isnan(v)]
    return math.fsum(known) / len(known) if known else None


def _integers(name: str, values: Sequence[SupportsIndex]) -> list[int]:
    try:
        return [operator.index(v) for v in values]
    except TypeError:
        raise InputError(
            f"AccuracyMatrix.add_row: {name} must be integers (counts of samples), got {values!r}."
        ) from None


def _cell(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"


def _count(cell: str, total: int) -> int:
    """The count out of ``total`` whose fraction is written in a cell."""
    if not total and not cell:
        return 0
    share = float(cell)
    if not 0 <= share <= 1:
        raise ValueError(f"a fraction must be in [0, 1], got {cell!r}.")
    count = round(share * total)
    if abs(count - share * total) > 1e-6 * total:
        raise ValueError(f"the fraction {cell} is no count out of {total} test samples.")
    return count
