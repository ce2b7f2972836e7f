"""Loss and accuracy along lines between the masks of tasks, after figure 8b of Soft-TransFormers."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.errors import InputError
from ostinato.report.drawing import PALETTE, Line, draw_lines

SHARES = tuple(s / 4 for s in range(-2, 7))
"""Points of a line: 0 is the task's mask, 1 that of the other task."""


def find(subject: Subject) -> Findings:
    """Score a task's held-out images, among its classes, with masks between its own and those of each other task.

    The task is ``task``, or the first one. Prompts and head are those of the task.
    """
    method, task = cast(Any, subject.method), subject.chosen_tasks()[0]
    others = [t for t in range(method.n_tasks) if t != task]
    if not others:
        raise InputError("mask_path needs a run of at least two tasks.")
    group = subject.held_out()[task]
    first = int(method.task_sizes[:task].sum())
    labels = torch.from_numpy(np.asarray(group.labels)) - first
    n = int(method.task_sizes[task])

    points = [(other, share) for other in others for share in SHARES]

    def read(x: Tensor) -> Tensor:
        return method.scores_between(x, task, points)[..., first : first + n].float().transpose(0, 1)

    logits = torch.cat([values for _, values in subject.each_batch([group], read)]).unbind(1)
    rows: list[tuple[Any, ...]] = []
    for (other, share), found in zip(points, logits, strict=True):
        right = float((found.argmax(1) == labels).float().mean())
        rows.append((task + 1, other + 1, share, float(F.cross_entropy(found, labels)), right))
    lines: list[Line] = []
    for i, other in enumerate(others):
        percents = 100 * np.array([row[-1] for row in rows if row[1] == other + 1])
        lines.append(Line(f"towards task {other + 1}", np.arange(len(SHARES)), percents, PALETTE[i % len(PALETTE)]))
    draw = partial(
        draw_lines, lines, title=f"Between the masks of tasks: {subject.title}",
        subtitle=f"held-out images of task {task + 1} among its classes; the loss is in the table",
        across="share of the other task's mask", places=[f"{s:g}" for s in SHARES],
    )  # fmt: skip
    return Findings(("task", "towards", "share", "loss", "accuracy"), rows, draw)


ANALYSIS = Analysis(
    "mask_path",
    "loss and accuracy along the lines between the masks of a task and of the others",
    having("scores_between"),
    find,
    takes=("data", "task"),
)
