"""Rows of a batch that belong to different tasks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def traced() -> bool:
    """Whether operations are recorded for a batch of any size, so that no size and no value may decide what runs."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def by_task(tasks: Tensor, n_tasks: int, compute: Callable[[int, Tensor | slice], Tensor]) -> Tensor:
    """Compute each row under its own task, in one call per task that occurs.

    A traced call has to hold every task: it computes all rows under each, and selects. Rows do not depend on each
    other, so that both give the same.

    Args:
        tasks: (B,) of the rows, in [0, n_tasks).
        n_tasks: number T of tasks.
        compute: from a task and its rows, by number or as a slice, to values (rows, ...).

    Returns:
        (B, ...).
    """
    if traced():
        under_each = torch.stack([compute(task, slice(None)) for task in range(n_tasks)])
        return under_each[tasks, torch.arange(tasks.shape[0], device=tasks.device)]
    found: Tensor | None = None
    for task in tasks.unique().tolist():
        rows = (tasks == task).nonzero().flatten()
        values = compute(task, rows)
        if found is None:
            found = values.new_empty(len(tasks), *values.shape[1:])
        found[rows] = values
    return compute(0, slice(0)) if found is None else found
