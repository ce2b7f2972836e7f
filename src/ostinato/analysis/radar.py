"""Accuracy of methods on several data sets in one chart, over the runs in a directory.

After the radar chart of Soft-TransFormers (figure 7a), which compares two methods on four benchmarks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.analysis.base import Findings
from ostinato.analysis.directories import by_name, finished_runs
from ostinato.errors import InputError
from ostinato.report.figures import radar
from ostinato.report.tables import read_summary
from ostinato.runs.rundir import RunDir

SHOWS = "accuracy of each method on each data set, a ray per set, over the finished runs in a directory"

_FEWEST = 3
"""Rays without which there is no area."""


@dataclass(frozen=True)
class _Run:
    name: str
    method: str
    ray: str
    options: dict[str, str]
    mean_task: float
    in_batches: float | None


def find(folder: Path) -> Findings:
    """Average the runs of a method and its options on each stream; a stream is a data set and its number of tasks.

    Accuracies are means over tasks after the last one. Options tell lines apart if they differ between runs of one
    method on one stream; those that differ between streams only, such as rates, do not. Seeds are averaged.

    Raises:
        InputError: if finished runs cover fewer than three streams.
    """
    runs = [_read(name, path) for name, path in finished_runs(folder)]
    rays = list(dict.fromkeys(run.ray for run in runs))
    if len(rays) < _FEWEST:
        raise InputError(
            f"radar: there must be finished runs on at least {_FEWEST} streams below {folder}, found "
            f"{', '.join(rays) or 'none'}."
        )
    lines: dict[str, list[_Run]] = {}
    for run in runs:
        lines.setdefault(_line(run, runs), []).append(run)
    values = {
        line: np.array([_mean([r.mean_task for r in members if r.ray == ray]) for ray in rays])
        for line, members in lines.items()
    }
    draw = partial(
        radar, values, rays, title="Accuracy by data set",
        subtitle="mean over tasks after the last one, each sample alone; no point where nothing was run",
    )  # fmt: skip
    rows: list[tuple[Any, ...]] = [
        (run.name, line, run.ray, run.mean_task, "" if run.in_batches is None else run.in_batches)
        for line, members in lines.items()
        for run in members
    ]
    columns = ("run", "line", "stream", "mean_task_accuracy", "batch_mean_task_accuracy")
    return Findings(columns, rows, draw)


def _read(name: str, path: Path) -> _Run:
    record, summary = RunDir(path).read_record(), read_summary(path)
    known = summary.get("mean_task_accuracy")
    return _Run(
        name,
        record.method,
        f"{summary.get('stream')}, {summary.get('tasks')} tasks",
        {k: json.dumps(v) for k, v in by_name("method", record.options)},
        float("nan") if known is None else float(known),
        summary.get("batch_mean_task_accuracy"),
    )


def _line(run: _Run, runs: list[_Run]) -> str:
    """Name of a run's line: its method, and options in which runs of the method differ on one stream."""
    peers = [r for r in runs if r.method == run.method]
    differing = [
        key
        for key in run.options
        if any(
            key in p.options and p.options[key] != q.options.get(key) for p in peers for q in peers if p.ray == q.ray
        )
    ]
    return " ".join([run.method, *(f"{key.removeprefix('method.')}={run.options[key]}" for key in differing)])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
