"""LoRA: low-rank updates of the attention per task, over prompts.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685; as the baseline of Soft-TransFormers (https://arxiv.org/abs/2411.16073).

In chosen layers the weights W of queries, values and the output projection become W + scale B A, with A (r, in) random
and B (out, r) zero, so that training starts at the prompts alone.

Differences from the paper: Soft-TransFormers' public code uses scale 8 at every rank and a dropout of 0.1 on the input;
here the scale is an option and there is no dropout. At large ranks its learning rate diverges: tune ``train.lr`` for a
fair comparison. With ViT-B a layer has 4,608 r parameters per task.
"""

from __future__ import annotations

from typing import Any

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import check_positive
from ostinato.methods.parts.banks import LowRank
from ostinato.methods.parts.task_edits import TaskEdits
from ostinato.registry import register

MAPS = ("q", "v", "proj")


@register("lora")
class LoRA(TaskEdits):
    """Low-rank updates per task over prompts.

    Args:
        backbone: the frozen encoder.
        rank: r.
        scale: factor on B A.
        more: options of the prompts and of task inference, see :class:`TaskEdits`.
    """

    bank: LowRank

    def __init__(self, backbone: Backbone, *, rank: int = 4, scale: float = 8.0, **more: Any) -> None:
        check_positive(rank=rank)
        if scale <= 0:
            raise InputError(f"method.scale must be positive, got {scale}.")
        super().__init__(backbone, lambda layers: LowRank(backbone.arch, layers, MAPS, rank, scale), **more)
