"""Density of learned mask values: figure 3 of Soft-TransFormers."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.errors import InputError
from ostinato.report.figures import histograms

BINS = 101
"""Bins of all layers and maps; an odd number, so that masks that stay at 1 fall into the middle of a bin."""


def shared_edges(low: float, high: float) -> Tensor:
    """Edges (BINS + 1,) of equal bins over [low, high] in fp64; over a range of 0.02 if low equals high."""
    if high <= low:
        low, high = low - 0.01, high + 0.01
    return torch.linspace(low, high, BINS + 1, dtype=torch.float64)


def counts(values: Tensor, edges: Tensor) -> Tensor:
    """Count values per bin, (BINS,); a bin includes its lower edge, the last bin both edges."""
    bins = torch.bucketize(values.detach().flatten().double().cpu(), edges, right=True).sub_(1).clamp_(0, BINS - 1)
    return torch.bincount(bins, minlength=BINS)


def find(subject: Subject) -> Findings:
    """Read ``method.mask_values(task)``, the entries of masks by ``layer.map``."""
    read = cast(Any, subject.method).mask_values
    tasks = subject.chosen_tasks()
    ranges = [torch.stack(v.aminmax()) for task in tasks for v in read(task).values()]
    if not ranges:
        raise InputError(f"mask_density: {subject.method.name} has no mask in any layer.")
    every = torch.stack(ranges)
    edges = shared_edges(float(every[:, 0].min()), float(every[:, 1].max()))
    found: dict[str, Tensor] = {}
    for task in tasks:  # one at a time, since all masks of a long run are large
        for name, values in read(task).items():
            found[name] = found.get(name, torch.zeros(BINS, dtype=torch.int64)) + counts(values, edges)
    layers: dict[str, dict[str, Any]] = {}
    for name, n in found.items():
        layer, _, part = name.partition(".")
        layers.setdefault(layer, {})[part] = (n / n.sum()).numpy()
    which = f"task {tasks[0]}" if subject.task is not None else f"all {len(tasks)} tasks"

    draw = partial(
        histograms, {f"layer {layer}": lines for layer, lines in layers.items()}, edges.numpy(),
        title=f"Learned mask values: {subject.title}", across="mask value",
        subtitle=f"share of a map's entries per bin, {which}; logarithmic",
    )  # fmt: skip
    shown = subject.task if subject.task is not None else "all"
    rows = [
        (shown, *name.partition(".")[::2], float(edges[i]), float(edges[i + 1]), int(n[i]))
        for name, n in found.items()
        for i in range(BINS)
    ]
    return Findings(("task", "layer", "map", "from", "to", "count"), rows, draw)


ANALYSIS = Analysis(
    "mask_density", "histogram of learned mask values per layer and map", having("mask_values"), find, takes=("task",)
)
