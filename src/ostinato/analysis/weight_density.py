"""Density of frozen weights before and after the masks of tasks: figures 3b and 10 of Soft-TransFormers."""

from __future__ import annotations

from typing import Any, cast

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.analysis.density import Labelled, densities, shared_edges
from ostinato.errors import InputError


def find(subject: Subject) -> Findings:
    """Read ``method.masked_weights(task)``, pairs of frozen and masked weights by ``layer.map``."""
    read = cast(Any, subject.method).masked_weights
    every = (w for task in subject.chosen_tasks() for pair in read(task).values() for w in pair)
    widest = max((float(w.abs().max()) for w in every), default=0.0)
    if widest == 0:
        raise InputError(f"weight_density: {subject.method.name} has no mask in any layer.")

    def labelled(task: int) -> Labelled:
        for name, pair in read(task).items():
            for kind, values in zip(("frozen", "masked"), pair, strict=True):
                yield (*name.split("."), kind), values

    edges = shared_edges(-widest, widest)
    title = "Weights, frozen and masked"
    return densities(subject, labelled, edges, labels=("weights",), title=title, across="weight")


ANALYSIS = Analysis(
    "weight_density",
    "histogram of frozen weights beside the same times the masks, per layer and map",
    having("masked_weights"),
    find,
    takes=("task",),
)
