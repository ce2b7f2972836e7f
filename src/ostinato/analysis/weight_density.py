"""Density of frozen weights before and after the masks of tasks: figures 3b and 10 of Soft-TransFormers."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.analysis.mask_density import BINS, counts, shared_edges
from ostinato.errors import InputError
from ostinato.report.figures import histograms


def find(subject: Subject) -> Findings:
    """Read ``method.masked_weights(task)``, pairs of frozen and masked weights by ``layer.map``."""
    read = cast(Any, subject.method).masked_weights
    tasks = subject.chosen_tasks()
    widest = max((float(w.abs().max()) for task in tasks for pair in read(task).values() for w in pair), default=0.0)
    if widest == 0:
        raise InputError(f"weight_density: {subject.method.name} has no mask in any layer.")
    edges = shared_edges(-widest, widest)
    found: dict[tuple[str, str], Tensor] = {}
    for task in tasks:  # one at a time, since all masks of a long run are large
        for name, pair in read(task).items():
            for kind, values in zip(("frozen", "masked"), pair, strict=True):
                found[name, kind] = found.get((name, kind), torch.zeros(BINS, dtype=torch.int64)) + counts(
                    values, edges
                )
    layers: dict[str, dict[str, Any]] = {}
    for (name, kind), n in found.items():
        layer, _, part = name.partition(".")
        layers.setdefault(f"layer {layer}", {})[f"{part}, {kind}"] = (n / n.sum()).numpy()
    which = f"task {tasks[0]}" if subject.task is not None else f"all {len(tasks)} tasks"
    draw = partial(
        histograms, layers, edges.numpy(), title=f"Weights, frozen and masked: {subject.title}", across="weight",
        subtitle=f"share of a map's entries per bin, {which}; logarithmic",
    )  # fmt: skip
    shown = subject.task if subject.task is not None else "all"
    rows = [
        (shown, *name.partition(".")[::2], kind, float(edges[i]), float(edges[i + 1]), int(n[i]))
        for (name, kind), n in found.items()
        for i in range(BINS)
    ]
    return Findings(("task", "layer", "map", "weights", "from", "to", "count"), rows, draw)


ANALYSIS = Analysis(
    "weight_density",
    "histogram of frozen weights beside the same times the masks, per layer and map",
    having("masked_weights"),
    find,
    takes=("task",),
)
