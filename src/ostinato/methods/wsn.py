"""Winning SubNetworks: a binary mask of the weights with the largest scores per task.

Kang, Mina, Madjid, Yoon, Hasegawa-Johnson, Hwang, Yoo: "Forget-free Continual Learning with Winning Subnetworks",
ICML 2022, https://proceedings.mlr.press/v162/kang22b.html; SoftNet: Kang, Yoon, Madjid, Hwang, Yoo: "On the
Soft-Subnetwork for Few-Shot Class Incremental Learning", ICLR 2023, https://arxiv.org/abs/2209.07529. Here they are
rivals of Soft-TransFormers, over the same prompts and on the same frozen weights.

Every weight has a score. The forward pass keeps the top share of each map by magnitude; the straight-through gradient
reaches all scores. The binary mask is stored at the end of a task, and the next task continues from the scores.

Differences from the papers: pre-trained weights are frozen (WSN trains those outside all masks), biases are not masked.
``kind=hybrid`` multiplies kept weights by a learned value per task, as older code of Soft-TransFormers does under the
name WSN; ``kind=soft`` is SoftNet, which multiplies dropped weights by a fixed share drawn from U(0, 1).
"""

from __future__ import annotations

from typing import Any, Literal

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.parts.banks import VARIANTS, ScoredMasks
from ostinato.methods.parts.masked_edits import MaskedEdits
from ostinato.registry import register


@register("wsn")
class WSN(MaskedEdits):
    """Binary masks of the top-scored weights, per task.

    Args:
        backbone: the frozen encoder.
        variant: masked maps: "attn" (queries, keys, values), "attn+proj", or "ff" with the MLP as well.
        keep: share of weights kept per map (c in the paper), in (0, 1].
        kind: "binary" (WSN), "hybrid", or "soft" (SoftNet).
        more: options of the prompts and of task inference, see :class:`MaskedEdits`.
    """

    bank: ScoredMasks

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: Literal["attn", "attn+proj", "ff"] = "attn+proj",
        keep: float = 0.9,
        kind: Literal["binary", "hybrid", "soft"] = "binary",
        **more: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise InputError(f"method.variant must be one of {list(VARIANTS)}, got {variant!r}.")
        if not 0 < keep <= 1:
            raise InputError(f"method.keep must be a share in (0, 1], got {keep}.")
        if kind not in ("binary", "hybrid", "soft"):
            raise InputError(f"method.kind must be 'binary', 'hybrid' or 'soft', got {kind!r}.")
        super().__init__(
            backbone, lambda layers: ScoredMasks(backbone.arch, layers, VARIANTS[variant], keep, kind), **more
        )
