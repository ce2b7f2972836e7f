"""Adapters: bottlenecks in the MLP per task, over prompts.

Houlsby, Giurgiu, Jastrzebski, Morrone, de Laroussilhe, Gesmundo, Attariyan, Gelly: "Parameter-Efficient Transfer
Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751; as the baseline of Soft-TransFormers
(https://arxiv.org/abs/2411.16073) at a matched budget.

In chosen layers y + U gelu(D y) follows the two maps of the MLP: fc1, before its activation, and fc2. There is no bias,
and U starts at 0, so that training starts at the prompts alone.

Differences from the paper: Soft-TransFormers' public code leaves these adapters frozen near the identity, so its
published rows do not depend on the rank; here they are trained. With ViT-B a layer has 7,680 r parameters per task.
"""

from __future__ import annotations

from typing import Any

from ostinato.backbones import Backbone
from ostinato.methods.base import check_positive
from ostinato.methods.parts.banks import Adapters
from ostinato.methods.parts.task_edits import TaskEdits
from ostinato.registry import register

MAPS = ("fc1", "fc2")


@register("adapter")
class Adapter(TaskEdits):
    """Serial bottleneck adapters per task over prompts.

    Args:
        backbone: the frozen encoder.
        rank: width r of a bottleneck.
        more: options of the prompts and of task inference, see :class:`TaskEdits`.
    """

    bank: Adapters

    def __init__(self, backbone: Backbone, *, rank: int = 4, **more: Any) -> None:
        check_positive(rank=rank)
        super().__init__(backbone, lambda layers: Adapters(backbone.arch, layers, MAPS, rank), **more)
