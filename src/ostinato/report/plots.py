"""Figures of runs, with accuracies in percent; the suffix of the file, .png, .pdf or .svg, sets the format."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ostinato.errors import InputError
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.report.drawing import BLUE, DASHES, PALETTE, VERMILION, Line, cut, draw_lines, picture_path
from ostinato.report.figures import Panel, heat_maps


def accuracy_curve(
    matrix: AccuracyMatrix,
    path: str | Path,
    title: str,
    task_incremental: Sequence[float | None] | None = None,
) -> None:
    """Draw accuracy over learned tasks.

    A bold line is for all classes seen; thin grey lines are for the test samples of each task.

    Args:
        matrix: accuracy matrix with at least one row.
        path: file to write; folders are made as needed.
        title: title of the figure.
        task_incremental: (R,) fractions per row with the true task given, drawn dashed; None if not measured.

    Raises:
        InputError: if the matrix is empty, ``task_incremental`` lacks an entry per row, or the suffix is unknown.
    """
    picture_path(path)
    _check_rows("accuracy_curve", matrix)
    if task_incremental is not None and len(task_incremental) != matrix.n_rows:
        raise InputError(
            f"accuracy_curve: task_incremental must have an entry per row of the matrix ({matrix.n_rows}), "
            f"got {len(task_incremental)}. Use None for rows that were not measured."
        )
    x = _learned(matrix)
    lines = [Line("all classes seen", x, _all_seen(matrix), BLUE, width=2.8, zorder=5)]
    if task_incremental is not None:
        y = 100 * np.array([math.nan if v is None else v for v in task_incremental], dtype=float)
        lines.append(Line("true task given", x, y, VERMILION, width=1.8, dashes=DASHES[1]))
    subtitle, behind = "test samples of all classes seen so far", []
    if matrix.n_tasks > 1:
        subtitle = "bold: test samples of all classes seen so far   |   thin grey: test samples of one task each"
        values, width = 100 * matrix.values(), 0.9 if matrix.n_tasks <= 25 else 0.6
        for i in range(matrix.n_tasks):
            start = matrix.first_row(i)
            behind.append(Line("", x[start:], values[start:, i], "#b4b4b4", width=width, zorder=2))
    first = matrix.n_rows > 1
    draw_lines(lines, path, title, subtitle, across="tasks learned", behind=behind, first_label=first)


def compare_curves(matrices: Mapping[str, AccuracyMatrix], path: str | Path, title: str) -> None:
    """Draw the accuracy on all classes seen of several runs, one named line each.

    Args:
        matrices: accuracy matrix by name of the run; lengths may differ. Names are cut to 30 characters.
        path: file to write; folders are made as needed.
        title: title of the figure.

    Raises:
        InputError: if there is no run, a matrix is empty, or the suffix is unknown.
    """
    picture_path(path)
    if not matrices:
        raise InputError("compare_curves needs at least one run, got none.")
    for name, matrix in matrices.items():
        _check_rows(f"compare_curves, run {name!r}", matrix)
    looks = [(colour, dashes) for dashes in DASHES for colour in PALETTE]
    lines = []
    for i, (name, matrix) in enumerate(matrices.items()):
        colour, dashes = looks[i % len(looks)]
        lines.append(Line(name, _learned(matrix), _all_seen(matrix), colour, dashes=dashes))
    draw_lines(lines, path, title, "test samples of all classes seen so far", across="tasks learned")


def accuracy_heatmap(
    matrix: AccuracyMatrix,
    path: str | Path,
    title: str,
    task_labels: Sequence[str] | None = None,
) -> None:
    """Draw the accuracy matrix as a heat map: a row per evaluation, a column per task.

    Cells show numbers where they fit. The colour scale is 0 to 100% in every figure.

    Args:
        matrix: accuracy matrix with at least one row.
        path: file to write; folders are made as needed.
        title: title of the figure.
        task_labels: (T,) names of the tasks, cut to 24 characters; None numbers them from 1.

    Raises:
        InputError: if the matrix is empty, ``task_labels`` lacks an entry per task, or the suffix is unknown.
    """
    picture_path(path)
    _check_rows("accuracy_heatmap", matrix)
    n_tasks = matrix.n_tasks
    labels = [str(i + 1) for i in range(n_tasks)] if task_labels is None else [cut(str(v), 24) for v in task_labels]
    if len(labels) != n_tasks:
        raise InputError(
            f"accuracy_heatmap: task_labels must have an entry per task ({n_tasks}), got {len(labels)}. "
            "Leave them out to number the tasks."
        )
    beyond = [[i >= len(row) for i in range(n_tasks)] for row in matrix.correct]
    panel = Panel(
        np.ma.array(100 * matrix.values(), mask=beyond),
        [labels[len(row) - 1] for row in matrix.correct],
        labels,
        unit="%",
        top=100,
        digits=1 if n_tasks <= 12 else 0,
    )
    subtitle = "accuracy on each task's test samples, among all classes seen"
    heat_maps([panel], path, title, subtitle, across="test samples of task", down="after learning task")


def _check_rows(where: str, matrix: AccuracyMatrix) -> None:
    if not matrix.n_rows:
        raise InputError(f"{where}: the accuracy matrix must have at least one row, got none. Learn a task first.")


def _learned(matrix: AccuracyMatrix) -> np.ndarray:
    """Number of learned tasks at each row (R,)."""
    return np.array([len(row) for row in matrix.correct])


def _all_seen(matrix: AccuracyMatrix) -> np.ndarray:
    """Accuracy on all classes seen (R,), in percent."""
    return np.array([100 * matrix.row_accuracy(r) for r in range(matrix.n_rows)])
