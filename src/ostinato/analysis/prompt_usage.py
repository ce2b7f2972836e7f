"""Use of prompts by the images of each task."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.analysis.base import Analysis, Findings, Subject, having
from ostinato.methods.base import Method, TaskInferring
from ostinato.report.figures import bar_rows


def supports(method: Method) -> bool:
    """Tell whether the method has the hook ``usage`` or infers a task, which selects a prompt."""
    return isinstance(method, TaskInferring) or having("usage")(method)


def usage(method: Method, x: Tensor) -> Tensor:
    """Weight of each prompt for each image, (B, M), 1 for a selected prompt.

    This is ``usage(x)`` of the method, or else one-hot ``infer_task(x)``.
    """
    if having("usage")(method):
        return cast(Any, method).usage(x).float()
    return F.one_hot(cast(TaskInferring, method).infer_task(x), method.n_tasks).float()


def find(subject: Subject) -> Findings:
    """Sum the usage over the held-out images of each task."""
    groups = subject.held_out()
    parts = [torch.zeros(0)] * len(groups)
    for i, values in subject.each_batch(groups, lambda x: usage(subject.method, x).sum(0)):
        parts[i] = parts[i] + values if len(parts[i]) else values
    used = [(i, len(group), part) for i, (group, part) in enumerate(zip(groups, parts, strict=True)) if len(part)]
    kind, first = ("prompt", 0) if having("usage")(subject.method) else ("prompt of the inferred task", 1)

    bars = {f"task {i + 1}": (part / n).numpy() for i, n, part in used}
    subtitle = "mean use per held-out image (1: chosen for every image), one row per true task"
    draw = partial(
        bar_rows, bars, title=f"Use of prompts: {subject.title}", subtitle=subtitle, across=kind, first=first
    )
    rows = [(i + 1, n, first + m, float(part[m]), float(part[m]) / n) for i, n, part in used for m in range(len(part))]
    return Findings(("true_task", "images", kind.replace(" ", "_"), "chosen", "per_image"), rows, draw)


ANALYSIS = Analysis(
    "prompt_usage", "how often each prompt is used for the held-out images of each task", supports, find, ("data",)
)
