"""EASE: an adapter per task, and prototypes of all classes under all adapters.

Zhou, Sun, Ye, Zhan: "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning", CVPR 2024,
https://arxiv.org/abs/2403.12030.

Every task trains adapters beside the MLP of all layers by cross-entropy over its classes, through a temporary cosine
head, and then freezes them; f_j are the features under those of task j. The prototype P_{c,j} of class c of task i is

- the mean of f_j over the class's training images for j <= i, as old adapters are there when the class is learned;
- synthesised for later adapters, j > i, without images (semantic mapping): ``P_{c,j} = sum_k w_k P_{k,j}`` over the
  classes k of tasks j and later, with ``w = softmax_k cos(P_{c,i}, P_{k,i})``, the similarity under task i's adapters.

The score of class c of task i is ``cos(f_i, P_{c,i}) + alpha / t sum_{j != i} cos(f_j, P_{c,j})`` with t tasks before
the newest one, plus beta times the cosine of the plain feature with its class mean.

Differences from the paper: the recipe is the public code's for CIFAR-100. Pixels are normalised as the weights expect
(``preprocess=unit`` restores [0, 1]). A task of one class has no loss: its adapters add nothing to the plain encoder.
As in the public code, the mapping has no temperature, and classes of all tasks from j on take part, not only task j's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.choices import built
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.adaptations import AdapterOptions
from ostinato.nn import ClassMeans, cosine
from ostinato.nn.proxy import CosineProxy
from ostinato.nn.statistics import sums_of
from ostinato.registry import register


@register("ease")
class EASE(Method):
    """Adapters per task, with prototypes under all of them.

    Args:
        backbone: the frozen encoder.
        alpha: weight of the mean cosine under the adapters of other tasks.
        beta: weight of the cosine under the plain encoder; 0 omits it.
        adapters: see :class:`ostinato.methods.parts.adaptations.AdapterOptions`.
    """

    recipe = Recipe(epochs=20, batch_size=48, lr=0.025, optimizer="sgd", weight_decay=5e-4, schedule="cosine_per_epoch")

    prototypes: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        alpha: float = 0.1,
        beta: float = 0.0,
        **adapters: Annotated[Any, AdapterOptions()],
    ) -> None:
        super().__init__(backbone)
        if alpha < 0 or beta < 0:
            raise InputError(f"method.alpha and method.beta must not be negative, got {alpha} and {beta}.")
        self.alpha, self.beta = alpha, beta
        self.adapters = built(AdapterOptions(), "method", adapters).build(backbone)
        self.proxy = CosineProxy(backbone.dim)
        self.plain_means = ClassMeans(backbone.dim)  # of beta
        self.register_buffer("prototypes", torch.zeros(0, 0, backbone.dim))  # P (n_seen, T, D)

    def begin_task(self, task: LearnTask) -> None:
        """Add adapters, a temporary head and empty prototypes."""
        super().begin_task(task)
        self.adapters.begin_task(self.device)
        self.proxy.reset(len(task.classes))
        if self.beta:
            self.plain_means.grow(len(task.classes))
        self.prototypes = F.pad(self.prototypes, (0, 0, 0, 1, 0, len(task.classes)))

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage, if the task has classes to tell apart."""
        return [Stage(self.loss)] if len(task.classes) > 1 else []

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        first = self.n_seen - len(self.proxy.weight)
        return {"ce": F.cross_entropy(self.proxy(self.backbone(x, self.adapters.plan(-1))), y - first)}

    def end_task(self, task: LearnTask) -> None:
        """Average the task's features under all adapters, map old prototypes, and drop the head."""
        features, labels = task.extract_features(lambda x: torch.cat(self.features(x), dim=-1))
        means = sums_of(features, labels - task.classes.start, len(task.classes))
        self.prototypes[task.classes.start :] = means.means().unflatten(1, (self.n_tasks, -1))
        self._map()
        if self.beta:
            self.plain_means.update(*task.extract_features(self.query))
        self.proxy.reset(0)

    def _map(self) -> None:
        """Synthesise the prototypes of classes under the adapters of later tasks."""
        starts = [0, *self.task_sizes.cumsum(0).tolist()]
        for i in range(self.n_tasks):
            own = slice(starts[i], starts[i + 1])
            for j in range(i + 1, self.n_tasks):
                later = self.prototypes[starts[j] :]
                weights = cosine(self.prototypes[own, i], later[:, i]).softmax(dim=1)
                self.prototypes[own, j] = weights @ later[:, j]

    def features(self, x: Tensor) -> list[Tensor]:
        """Features (B, D) under the adapters of every task."""
        return self.features_under(x, [self.adapters.plan(task) for task in range(self.n_tasks)], 0)

    def scores(self, x: Tensor) -> Tensor:
        """Weighted cosines (B, n_seen) of the features under all adapters with the prototypes."""
        weights = torch.full((self.n_seen, self.n_tasks), self.alpha / max(1, self.n_tasks - 1), device=self.device)
        weights[torch.arange(self.n_seen, device=self.device), self.task_of_class] = 1.0
        features = torch.cat([F.normalize(f, dim=-1) for f in self.features(x)], dim=-1)
        scores = features @ (weights[..., None] * F.normalize(self.prototypes, dim=-1)).flatten(1).T
        if self.beta:
            scores = scores + self.beta * cosine(self.query(x), self.plain_means.means())
        return scores
