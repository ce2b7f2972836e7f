"""Sequential fine-tuning: the lower bound, without protection against forgetting.

Backbone and head are trained on each task in turn with cross-entropy over all classes seen.

Differences from the literature: there is no standard recipe; this one is SGD with a cosine schedule at a rate that
suits a ViT. ``scope=head`` trains the head alone on frozen features (sequential linear probing).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask, Losses, Method, Recipe
from ostinato.nn import TaskHeads
from ostinato.registry import register


@register("finetune")
class Finetune(Method):
    """Train all parameters, or the head, on the newest task.

    Args:
        backbone: the encoder, trained unless ``scope`` is "head".
        scope: "all" trains the backbone and the head, "head" the head alone.
    """

    recipe = Recipe(epochs=5, batch_size=32, lr=0.01, optimizer="sgd", schedule="cosine", clip=1.0)

    def __init__(self, backbone: Backbone, *, scope: Literal["all", "head"] = "all") -> None:
        super().__init__(backbone, trains_backbone=scope == "all")
        self.head = TaskHeads(backbone.dim, freeze_old=False)

    def begin_task(self, task: LearnTask) -> None:
        """Add a row per new class."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D), cached if the backbone is frozen."""
        return self.backbone(x) if self.trains_backbone else self.query(x)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen."""
        return {"ce": F.cross_entropy(self.head(self.features(x)), y)}

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x))
