"""Adapters per task: bottlenecks in the MLP, over a prompt method.

Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly: "Parameter-Efficient Transfer
Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751; as the baseline of Soft-TransFormers
(https://arxiv.org/abs/2411.16073) at a matched budget.

In chosen layers y + U gelu(D y) follows the two maps of the MLP: fc1, before its activation, and fc2. There is no
bias, and U starts at 0, so that training begins at the prompt method.

Differences from the paper: Soft-TransFormers' public code leaves these adapters frozen near the identity, which
explains why its published rows do not depend on the rank; here they are trained. With ViT-B a layer has 7,680 r
parameters per task.
"""

from __future__ import annotations

from typing import Any

from ostinato.backbones import Backbone, LinearEdit
from ostinato.methods.base import LearnTask, check_positive
from ostinato.methods.task_edits import LinearEdits, TaskEdits, bank_of, banked
from ostinato.registry import register

MAPS = ("fc1", "fc2")


@register("adapter")
class Adapter(TaskEdits):
    """Serial bottleneck adapters per task over a prompt method.

    Args:
        backbone: the frozen encoder.
        rank: width r of a bottleneck.
        more: options of the prompts and of task inference, see :class:`TaskEdits`.
    """

    def __init__(self, backbone: Backbone, *, rank: int = 4, **more: Any) -> None:
        super().__init__(backbone, **more)
        check_positive(rank=rank)
        self.rank = rank
        self.inner, self.outer = self.banks(MAPS), self.banks(MAPS)  # T of (r, out) and of (out, r)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's adapters."""
        super().begin_task(task)
        self.add_factors(self.inner, self.outer, self.rank, on_output=True)

    def linear(self, task: int) -> LinearEdits:
        """The adapters of a task."""
        edits: LinearEdits = {i: {} for i in self.layers}
        for i, name, inner in banked(self.inner):
            edits[i][name] = LinearEdit(inner=inner[task], outer=bank_of(self.outer, i, name)[task])
        return edits
