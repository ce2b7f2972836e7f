"""Soft-TransFormers: a real-valued mask of frozen attention weights per task.

Kang, Yoo et al.: "Soft-TransFormers for Continual Learning", https://arxiv.org/abs/2411.16073.

In chosen layers the frozen weights of queries, keys, values and the output projection are multiplied entry by entry
with a mask that starts at exactly 1, so that training starts at the prompts alone (eq. 3). Prompts, the task's key, its
mask and its rows of the head are trained with cross-entropy over the task's classes and the pull of the key (eq. 7).
Masks of earlier tasks never change; at test the task of every sample is inferred.

Differences from the paper: tasks are inferred for each sample alone, where the paper takes one id for a whole test
batch of one task (``eval.protocol=batch`` scores so in addition, and ``ostinato protocols`` compares the two). The
public code chooses among all classes of the benchmark, with untrained rows for those to come; here only classes seen
compete, in predictions and entropies. Layers count from 0, so the paper's 10-12 are (9, 10, 11). The public code draws
masks from U(0.99, 1) and multiplies biases by uninitialised numbers; here masks are exactly 1 (``mask_init`` restores
its ablation) and biases are not masked. It also masks fc1 and fc2 (``variant=ff``), which the paper's main rows do not.
L2P has no task keys; here the masks bring them. A task's key is the closed-form optimum of the matching loss
(``keys=learned`` trains it as the paper does). Experts are in the masked layers unless ``base.e_layers`` names others.
Projections (``base.pgp``) take their statistics under the prompts alone. The paper prints 2.31 / 4.62 / 6.93 million
parameters for one, two and three layers of ViT-B; exact are 2,359,296 / 4,718,592 / 7,077,888.
"""

from __future__ import annotations

from typing import Any, Literal

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.parts.banks import VARIANTS, Masks
from ostinato.methods.parts.masked_edits import MaskedEdits
from ostinato.nn.masks import INITS
from ostinato.registry import register


@register("soft_tf")
class SoftTF(MaskedEdits):
    """Multiplicative masks per task over prompts.

    Args:
        backbone: the frozen encoder.
        variant: masked maps: "attn" (queries, keys, values), "attn+proj", or "ff" with the MLP as well.
        mask_init: initial masks: "ones"; "uniform", "xavier", "kaiming" and "normal" are the paper's ablation.
        more: options of the prompts and of task inference, see :class:`MaskedEdits`.
    """

    bank: Masks

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: Literal["attn", "attn+proj", "ff"] = "attn+proj",
        mask_init: Literal["ones", "uniform", "xavier", "kaiming", "normal"] = "ones",
        **more: Any,
    ) -> None:
        if variant not in VARIANTS:
            raise InputError(f"method.variant must be one of {list(VARIANTS)}, got {variant!r}.")
        if mask_init not in INITS:
            raise InputError(f"method.mask_init must be one of {list(INITS)}, got {mask_init!r}.")
        super().__init__(backbone, lambda layers: Masks(backbone.arch, layers, VARIANTS[variant], mask_init), **more)
