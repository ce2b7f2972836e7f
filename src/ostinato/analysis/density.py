"""Densities of tensors of layers and maps over shared bins."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ostinato.analysis.base import Findings, Subject
from ostinato.report.figures import histograms

BINS = 101
"""Bins of all layers and maps; an odd number, so that masks that stay at 1 fall into the middle of a bin."""

Labelled = Iterable[tuple[tuple[str, ...], Tensor]]
"""Tensors of a task, each with its layer, its map and further labels."""


def shared_edges(low: float, high: float) -> Tensor:
    """Edges (BINS + 1,) of equal bins over [low, high] in fp64; over a range of 0.02 if low equals high."""
    if high <= low:
        low, high = low - 0.01, high + 0.01
    return torch.linspace(low, high, BINS + 1, dtype=torch.float64)


def counts(values: Tensor, edges: Tensor) -> Tensor:
    """Count values per bin, (BINS,); a bin includes its lower edge, the last bin both edges."""
    bins = torch.bucketize(values.detach().flatten().double().cpu(), edges, right=True).sub_(1).clamp_(0, BINS - 1)
    return torch.bincount(bins, minlength=BINS)


def densities(
    subject: Subject,
    read: Callable[[int], Labelled],
    edges: Tensor,
    *,
    labels: tuple[str, ...],
    title: str,
    across: str,
) -> Findings:
    """Count the entries of the tensors of the chosen tasks, and draw a panel per layer.

    Args:
        subject: chooses the tasks.
        read: tensors of a task.
        edges: of the bins.
        labels: names of the labels behind layer and map.
        title: title of the figure, before the name of the run.
        across: name of the values.
    """
    tasks = subject.chosen_tasks()
    found: dict[tuple[str, ...], Tensor] = {}
    for task in tasks:  # one at a time, since all masks of a long run are large
        for key, values in read(task):
            found[key] = found.get(key, torch.zeros(BINS, dtype=torch.int64)) + counts(values, edges)
    panels: dict[str, dict[str, Any]] = {}
    for (layer, *line), n in found.items():
        panels.setdefault(f"layer {layer}", {})[", ".join(line)] = (n / n.sum()).numpy()
    which = f"task {subject.task}" if subject.task is not None else f"all {len(tasks)} tasks"
    draw = partial(
        histograms, panels, edges.numpy(), title=f"{title}: {subject.title}", across=across,
        subtitle=f"share of a map's entries per bin, {which}; logarithmic",
    )  # fmt: skip
    shown = subject.task if subject.task is not None else "all"
    rows = [
        (shown, *key, float(edges[i]), float(edges[i + 1]), int(n[i])) for key, n in found.items() for i in range(BINS)
    ]
    return Findings(("task", "layer", "map", *labels, "from", "to", "count"), rows, draw)
