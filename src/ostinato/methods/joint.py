"""Joint training on the data of all tasks: the upper bound.

After each task the model is trained on all data seen so far. Results record ``data_seen: all``, since it breaks the
rule of no old data on purpose. The bound rises with the number of trained parameters: a linear head on frozen features;
the head and low-rank updates of the attention of chosen layers (Hu et al.: "LoRA: Low-Rank Adaptation of Large Language
Models", ICLR 2022, https://arxiv.org/abs/2106.09685); or the head and the whole backbone. Tables take the best of the
three as the bound. The head is linear, or compares directions: a cosine classifier whose rows start at the class means
of the features learns faster, and needs no rate for features of each length.

Differences from the literature: most papers train once on all classes and report one number. Here the bound is
measured after every task, continuing from the weights of the task before (``restart=true`` starts each task from the
pre-trained weights and costs no more). Compare the last value.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_layers, check_positive
from ostinato.methods.parts.banks import LowRank
from ostinato.nn import CosineHeads, TaskHeads
from ostinato.nn.statistics import sums_of
from ostinato.registry import register

MAPS = ("q", "k", "v", "proj")

_NOT_LOW_RANK = ("scope", ("head", "full"))


@register("joint")
class Joint(Method):
    """Train on the data of all tasks so far.

    Args:
        backbone: the encoder.
        scope: "head" trains the head on frozen features; "lora" trains the head and low-rank updates of q, k, v and
            proj; "full" trains the head and the backbone.
        classifier: of the head; the rows of "cosine" start at the class means.
        rank: rank r of the low-rank updates W + scale B A.
        scale: factor on B A.
        layers: layers with updates, from 0; None for all. Those below the lowest run once per image with
            ``state_cache``, if images are not augmented.
        restart: start every task from the pre-trained weights and a fresh head.
    """

    recipe = Recipe(epochs=5, batch_size=32, lr=0.01, optimizer="sgd", schedule="cosine", clip=1.0)
    data_seen = "all"
    no_effect: ClassVar = {option: _NOT_LOW_RANK for option in ("rank", "scale", "layers")}

    def __init__(
        self,
        backbone: Backbone,
        *,
        scope: Literal["head", "lora", "full"] = "head",
        classifier: Literal["linear", "cosine"] = "linear",
        rank: int = 16,
        scale: float = 8.0,
        layers: tuple[int, ...] | None = None,
        restart: bool = False,
    ) -> None:
        super().__init__(backbone, trains_backbone=scope == "full")
        check_positive(rank=rank)
        if scale <= 0:
            raise InputError(f"method.scale must be positive, got {scale}.")
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        if not self.layers:
            raise InputError("method.layers must name a layer. To update none, give method.scope=head.")
        self.scope, self.classifier, self.rank, self.scale, self.restart = scope, classifier, rank, scale, restart
        self.head = self._fresh_head()
        if scope == "lora":
            self.bank = self._updates()
        keeps = restart and self.trains_backbone
        self._initial_weights = {k: v.clone() for k, v in backbone.state_dict().items()} if keeps else {}

    def _updates(self) -> LowRank:
        return LowRank(self.backbone.arch, self.layers, MAPS, self.rank, self.scale, freeze_old=False)

    def _fresh_head(self) -> TaskHeads | CosineHeads:
        heads = CosineHeads if self.classifier == "cosine" else TaskHeads
        return heads(self.backbone.dim, freeze_old=False)

    def begin_task(self, task: LearnTask) -> None:
        """Add rows of the head; with ``restart``, reset the model. All tasks share one set of low-rank updates."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)
        if self.restart:
            self._forget()
        if self.scope == "lora" and (self.restart or self.n_tasks == 1):
            self.bank.begin_task(self.device)

    def _forget(self) -> None:
        """Reset the backbone, the low-rank updates and the head."""
        if self.trains_backbone:
            self.backbone.load_state_dict(self._initial_weights)
        if self.scope == "lora":
            self.bank = self._updates()
        self.head = self._fresh_head().to(self.device)
        with torch.no_grad():
            for size in self.classes_per_task:
                self.head.grow(size, device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Train on all samples seen; new rows of a cosine classifier start at the class means."""
        return [Stage(self.loss, prepare=lambda: self._begin_at_means(task))]

    def _begin_at_means(self, task: LearnTask) -> None:
        if not isinstance(self.head, CosineHeads):
            return
        sizes = self.classes_per_task
        means = sums_of(*task.extract_features(self.features), sum(sizes))
        self.head.set_rows(F.normalize(means.means(), dim=-1), first=0 if self.restart else sum(sizes[:-1]))

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D), cached if the backbone is frozen and has no updates."""
        if self.scope == "lora":
            plan = self.bank.plan(0)
            return self.backbone.features(self.states(x, plan.first), plan, start=plan.first)
        return self.backbone(x) if self.trains_backbone else self.query(x)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen."""
        return {"ce": F.cross_entropy(self.head(self.features(x)), y)}

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x))
