"""Importance of layers per task: the figure of LiEPrompt."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from ostinato.analysis.base import Analysis, Findings, Subject, having, numbered
from ostinato.report.figures import Panel, heat_maps


def find(subject: Subject) -> Findings:
    """Read ``method.layer_importance()``, (T, L)."""
    shares = cast(Any, subject.method).layer_importance().detach().float().cpu()
    tasks, layers = shares.shape
    panel = Panel(shares.numpy(), numbered(tasks, 1), numbered(layers))
    subtitle = "share of each layer at the end of each task's training"
    draw = partial(
        heat_maps, [panel], title=f"Importance of layers: {subject.title}", subtitle=subtitle,
        across="layer", down="task",
    )  # fmt: skip
    rows = [(t + 1, layer, float(shares[t, layer])) for t in range(tasks) for layer in range(layers)]
    return Findings(("task", "layer", "importance"), rows, draw)


ANALYSIS = Analysis(
    "layer_importance", "share of each layer, task by task (heat map)", having("layer_importance"), find
)
