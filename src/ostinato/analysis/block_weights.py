"""Block weights of CL-LoRA per task and layer."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from ostinato.analysis.base import Analysis, Findings, Subject, having, numbered
from ostinato.report.figures import Panel, heat_maps

MAPS = {"q": 0, "v": 2}
"""Edited maps and their rows in the block weights; row 1 is for the keys, which are not edited."""


def find(subject: Subject) -> Findings:
    """Read ``method.block_weights()`` (T, 3, n) and ``method.adapter_norms()`` (T, n, 2)."""
    method = cast(Any, subject.method)
    weights, norms = (t.detach().float().cpu() for t in (method.block_weights(), method.adapter_norms()))
    tasks, _, n = weights.shape
    layers = list(getattr(method, "specific_layers", range(n)))
    names = [str(layer) for layer in layers]
    panels = [
        Panel(weights[:, row].abs().numpy(), numbered(tasks, 1), names, f"|mu| of {name}") for name, row in MAPS.items()
    ] + [
        Panel(norms[:, :, i].numpy(), numbered(tasks, 1), names, f"norm of {name}'s update")
        for i, name in enumerate(MAPS)
    ]

    draw = partial(
        heat_maps, panels, title=f"Block weights and adapters: {subject.title}",
        subtitle="learned weight of each task's block, and Frobenius norm ||mu U P|| of its updates",
        across="layer", down="task", per_row=2,
    )  # fmt: skip
    rows = [
        (task + 1, layer, name, float(weights[task, row, i]), float(norms[task, i, j]))
        for task in range(tasks)
        for i, layer in enumerate(layers)
        for j, (name, row) in enumerate(MAPS.items())
    ]
    return Findings(("task", "layer", "map", "mu", "update_norm"), rows, draw)


ANALYSIS = Analysis(
    "block_weights",
    "size of each task's block weights and adapters, block by block (heat maps)",
    having("block_weights", "adapter_norms"),
    find,
)
