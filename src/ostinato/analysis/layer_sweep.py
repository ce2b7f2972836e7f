"""Accuracy against the edited layers, over the runs in a directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.analysis.base import Findings
from ostinato.analysis.directories import by_name, finished_runs
from ostinato.errors import InputError
from ostinato.report.figures import Series, placements
from ostinato.report.tables import read_summary
from ostinato.runs.rundir import RunDir

SHOWS = "accuracy against the edited layers (method.layers), over the finished runs in a directory"


@dataclass(frozen=True)
class Point:
    """A finished run.

    Attributes:
        run: path below the directory.
        method: name of the method.
        variant: ``method.variant``; empty if the method has none.
        stream: data, tasks and classes.
        backbone: name of the backbone.
        rest: other options and the recipe, as JSON by name.
        layers: edited layers in order; None for all.
        last: accuracy on all classes after the last task, a fraction.
        given: the same with the true task given, or None.
    """

    run: str
    method: str
    variant: str
    stream: str
    backbone: str
    rest: dict[str, str]
    layers: tuple[int, ...] | None
    last: float
    given: float | None


def read_points(folder: Path) -> tuple[list[Point], list[str]]:
    """Read the finished runs below a directory.

    Returns:
        Runs with an option ``method.layers``, and names of runs without.
    """
    points: list[Point] = []
    without: list[str] = []
    for name, run in finished_runs(folder):
        record, summary = RunDir(run).read_record(), read_summary(run)
        options = dict(record.options)
        if "layers" not in options:
            without.append(name)
            continue
        layers = options.pop("layers")
        variant = str(options.pop("variant", ""))
        rest = dict(by_name("method", options)) | dict(by_name("train", record.recipe))
        if layers is not None:  # what is placed with the masks, such as experts, is no option of its own
            rest = {k: "edited layers" if isinstance(v, list) and v == list(layers) else v for k, v in rest.items()}
        points.append(
            Point(
                name,
                record.method,
                variant,
                f"{summary.get('stream')}, {summary.get('tasks')} tasks, {summary.get('classes')} classes",
                str(summary.get("backbone")),
                {k: json.dumps(v) for k, v in rest.items()},
                None if layers is None else tuple(sorted(layers)),
                float(summary["last_accuracy"]),
                summary.get("task_incremental_accuracy"),
            )
        )
    return points, without


def written(layers: Sequence[int] | None) -> str:
    """Format layers: ``9-11`` for consecutive layers, else ``0,3,6``."""
    if layers is None:
        return "all"
    neighbours = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if neighbours else ",".join(map(str, layers))


def find(folder: Path) -> Findings:
    """Read the runs and average those of an experiment, which differ in the layers and the seed only.

    Raises:
        InputError: if no finished run has an option ``method.layers``.
    """
    points, without = read_points(folder)
    if not points:
        raise InputError(
            f"layer_sweep: there must be finished runs with an option method.layers below {folder}, found none"
            + (f" (without it: {', '.join(without[:5])})." if without else ".")
        )
    placed = sorted({p.layers for p in points}, key=_place)
    lines: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        peers = [p.rest for p in points if p.method == point.method]
        # Options that a peer lacks belong to another part, whose name differs already.
        other = [f"{k}={v}" for k, v in point.rest.items() if any(p[k] != v for p in peers if k in p)]
        key = (point.method, point.variant, point.stream, point.backbone, " ".join(other))
        lines.setdefault(key, []).append(point)
    # A line is named by the parts of its key that differ between lines.
    differing = [i for i in range(len(next(iter(lines)))) if len({key[i] for key in lines}) > 1]
    series = []
    for key, members in lines.items():
        by_place = [(x, [p for p in members if p.layers == layers]) for x, layers in enumerate(placed)]
        by_place = [(x, here) for x, here in by_place if here]
        series.append(
            Series(
                " ".join(key[i] for i in differing if key[i]),
                np.array([x for x, _ in by_place]),
                np.array([_mean([p.last for p in here]) for _, here in by_place]),
                np.array([_mean([p.given for p in here]) for _, here in by_place]),
            )
        )
    shared = ", ".join(part for i, part in enumerate(next(iter(lines))) if i not in differing and part)

    draw = partial(
        placements, series, [written(layers) for layers in placed],
        title=f"Accuracy by placement{': ' + shared if shared else ''}",
        subtitle="after the last task; solid: all classes compete   |   dashed: the classes of the true task alone",
        across="edited layers",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = []
    for p in sorted(points, key=lambda p: (p.method, p.variant, p.stream, _place(p.layers), p.run)):
        given = "" if p.given is None else p.given
        rows.append((p.run, p.method, p.variant, p.stream, p.backbone, written(p.layers), p.last, given))
    notes = (f"Left out, without an option method.layers: {', '.join(without)}.",) if without else ()
    columns = ("run", "method", "variant", "stream", "backbone", "layers", "last_accuracy", "task_incremental_accuracy")
    return Findings(columns, rows, draw, notes)


def _place(layers: tuple[int, ...] | None) -> tuple[int, tuple[int, ...]]:
    """Sort key of layers: few before many, then by number; all layers last."""
    return (10**6, ()) if layers is None else (len(layers), layers)


def _mean(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else float("nan")
