"""SLM: low-rank updates retrieved per sample from a growing store.

Peng, Tian, Liu, Yang, Jia: "Scalable Language Model with Generalized Continual Learning", ICLR 2024,
https://arxiv.org/abs/2404.07470.

Before a task, keys are fitted to the frozen features q(x) of its samples. Each key has a low-rank update of the queries
and values of all layers, initially zero. A sample retrieves the k keys with the largest cosine to q(x); their updates,
weighted by similarity, change the frozen weights for this sample alone. Training retrieves among the task's keys and
trains their updates. At test the keys of all tasks compete, so no task is inferred. The loss is cross-entropy over the
task's classes.

Differences from the paper: keys are k-means centres of normalised features; the paper learns a distribution per task in
groups of dimensions. Weights are a softmax of the cosines over the retrieved keys. Retrieved updates are joined along
the rank, sum_i w_i B_i A_i x, so that a batch of different updates is one product. Features are those of the backbone,
not of a second sentence encoder. Every sample is scored alone; the public code assumes that a test batch is of one task
and chooses checkpoints by their test score. The rank and the number of keys are not the paper's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone, Edit, LayerPlan, LinearEdit
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_layers, check_positive
from ostinato.nn import PerTask, TaskHeads, cosine
from ostinato.nn.clusters import centres
from ostinato.registry import register

MAPS = ("q", "v")


@register("slm")
class SLM(Method):
    """Retrieved low-rank updates.

    Args:
        backbone: the frozen encoder.
        layers: updated layers, from 0; None for all.
        keys: keys per task, each with an update.
        rank: r of an update.
        scale: factor on B A.
        top_k: keys retrieved per sample; all if there are fewer.
        temperature: of the softmax over their cosines.
    """

    recipe = Recipe(epochs=5, batch_size=8, lr=2e-4, optimizer="adamw", weight_decay=0.01)

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: tuple[int, ...] | None = None,
        keys: int = 4,
        rank: int = 4,
        scale: float = 8.0,
        top_k: int = 2,
        temperature: float = 0.05,
    ) -> None:
        super().__init__(backbone)
        check_positive(keys=keys, rank=rank, top_k=top_k)
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        if not self.layers:
            raise InputError("method.layers must name at least one layer.")
        if scale <= 0 or temperature <= 0:
            raise InputError(f"method.scale and method.temperature must be positive, got {scale} and {temperature}.")
        self.n_keys, self.rank, self.scale, self.top_k, self.temperature = keys, rank, scale, top_k, temperature
        self.keys = PerTask(trains=False)  # T of (keys, D)
        self.down = nn.ModuleDict({self._at(i, name): PerTask() for i in self.layers for name in MAPS})  # (keys, r, in)
        self.up = nn.ModuleDict({place: PerTask() for place in self.down})  # (keys, out, r)
        self.head = TaskHeads(backbone.dim)

    @staticmethod
    def _at(layer: int, name: str) -> str:
        return f"{layer}-{name}"

    def begin_task(self, task: LearnTask) -> None:
        """Add keys, updates and rows of the head."""
        super().begin_task(task)
        self.keys.add(torch.zeros(self.n_keys, self.backbone.dim, device=self.device))
        for place, bank in self.down.items():
            out, into = self.backbone.arch.shape_of(place.split("-")[1])
            bound = into**-0.5
            fresh = torch.empty(self.n_keys, self.rank, into, device=self.device).uniform_(-bound, bound)
            cast(PerTask, bank).add(fresh)
            cast(PerTask, self.up[place]).add(torch.zeros(self.n_keys, out, self.rank, device=self.device))
        self.head.grow(len(task.classes), device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; the keys are set before it."""
        return [Stage(self.loss, prepare=partial(self._set_keys, task))]

    @torch.no_grad()
    def _set_keys(self, task: LearnTask) -> None:
        """Set the k-means centres of q(x) / |q(x)| over the task's samples."""
        query, _ = task.extract_features(self.query)
        self.keys[-1].copy_(centres(F.normalize(query.float(), dim=-1), self.n_keys))

    def retrieve(self, query: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and weights (B, k) of the keys (n, D) nearest to q(x), (B, D)."""
        near, ids = cosine(query, keys).topk(min(self.top_k, len(keys)), dim=1)
        return ids, (near / self.temperature).float().softmax(-1)

    def plan(self, ids: Tensor, weights: Tensor, *, newest: bool) -> LayerPlan:
        """Updates of each sample, joined along the rank.

        Args:
            ids: retrieved keys (B, k).
            weights: (B, k).
            newest: whether ids count within the newest task instead of over all tasks.
        """

        def edit(place: str) -> LinearEdit:
            banks = cast(PerTask, self.down[place]), cast(PerTask, self.up[place])
            down, up = ((bank[-1] if newest else bank.joined())[ids] for bank in banks)  # (B, k, r, in), (B, k, out, r)
            up = self.scale * weights[:, :, None, None] * up
            return LinearEdit(down=down.flatten(1, 2), up=up.transpose(1, 2).flatten(2))

        return LayerPlan({i: Edit(linear={name: edit(self._at(i, name)) for name in MAPS}) for i in self.layers})

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        plan = self.plan(*self.retrieve(self.query(x), self.keys[-1]), newest=True)
        return {"ce": self.head.loss(self.backbone(x, plan), y)}

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        plan = self.plan(*self.retrieve(self.query(x), self.keys.joined()), newest=False)
        return self.head(self.backbone(x, plan))
