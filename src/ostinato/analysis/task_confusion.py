"""Confusion of true and inferred tasks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ostinato.analysis.base import Analysis, Findings, Subject, numbered
from ostinato.methods.base import TaskInferring
from ostinato.report.figures import Panel, heat_maps


def find(subject: Subject) -> Findings:
    """Count held-out images by true and found task, each image alone."""
    method = subject.method
    groups = subject.held_out()

    def found(x: Tensor) -> Tensor:
        if isinstance(method, TaskInferring):
            return method.infer_task(x)
        return method.task_of_class[method.scores(x).argmax(1)]

    counts = torch.zeros(len(groups), method.n_tasks, dtype=torch.int64)
    for i, tasks in subject.each_batch(groups, found):
        counts[i] += torch.bincount(tasks, minlength=method.n_tasks)
    shares = counts / counts.sum(1, keepdim=True)  # NaN where a task has no images
    source = "inferred task" if isinstance(method, TaskInferring) else "task of the predicted class"
    right = int(counts.diagonal().sum()) / int(counts.sum())

    panel = Panel(100 * shares.numpy(), numbered(len(groups), 1), numbered(method.n_tasks, 1), unit="%", top=100.0)
    subtitle = (
        f"share of each true task's held-out images, each scored alone; {100 * right:.1f}% of all on the diagonal"
    )
    draw = partial(
        heat_maps, [panel], title=f"True task and {source}: {subject.title}", subtitle=subtitle,
        across=source, down="true task",
    )  # fmt: skip
    rows = [
        (i + 1, j + 1, source.replace(" ", "_"), int(counts[i, j]), float(shares[i, j]))
        for i in range(len(groups))
        for j in range(method.n_tasks)
    ]
    return Findings(("true_task", "found_task", "found_by", "images", "share"), rows, draw)


ANALYSIS = Analysis(
    "task_confusion", "true task against inferred task on held-out images (heat map)", lambda _: True, find, ("data",)
)
