"""Density of learned mask values: figure 3 of Soft-TransFormers."""

from __future__ import annotations

from typing import Any, cast

import torch

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.analysis.density import Labelled, densities, shared_edges
from ostinato.errors import InputError


def find(subject: Subject) -> Findings:
    """Read ``method.mask_values(task)``, the entries of masks by ``layer.map``."""
    read = cast(Any, subject.method).mask_values
    ranges = [torch.stack(v.aminmax()) for task in subject.chosen_tasks() for v in read(task).values()]
    if not ranges:
        raise InputError(f"mask_density: {subject.method.name} has no mask in any layer.")
    every = torch.stack(ranges)
    edges = shared_edges(float(every[:, 0].min()), float(every[:, 1].max()))

    def labelled(task: int) -> Labelled:
        return ((tuple(name.split(".")), values) for name, values in read(task).items())

    return densities(subject, labelled, edges, labels=(), title="Learned mask values", across="mask value")


ANALYSIS = Analysis(
    "mask_density", "histogram of learned mask values per layer and map", having("mask_values"), find, takes=("task",)
)
