"""S-Prompts: prompts per task that are learned apart, chosen by k-means on frozen features.

Wang, Huang, Hong: "S-Prompts Learning with Pre-trained Transformers: An Occam's Razor for Domain Incremental Learning",
NeurIPS 2022, https://arxiv.org/abs/2207.12819 (the variant on images, S-iPrompts).

Every task trains a prompt of its own, tokens after the first one, and a linear head, by cross-entropy over its classes.
k-means on ``q(x) / |q(x)|`` over its images gives centres. A test image takes the prompt and the classes of the task
with the nearest centre.

Differences from the paper: tasks hold different classes, while domains of the paper share theirs, so that a wrong task
is a wrong class. k-means is deterministic, on images under the test transform. A read-out over all tokens leaves out
the prompts. The schedule is applied per step; the recipe is the public code's with 10 epochs. A task of one class
competes with the frozen rows of earlier classes in training. There is no variant with prompts in class texts.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring, check_positive
from ostinato.nn import PerTask, TaskHeads
from ostinato.nn.keys import ClusterKeys
from ostinato.registry import register

LOWERED = 1e4
"""By how much the logits of other tasks' classes are lowered."""


@register("s_prompt")
class SPrompt(TaskInferring):
    """Prompts among the tokens and a head per task.

    Args:
        backbone: the frozen encoder.
        length: tokens of a prompt.
        clusters: centres of k-means per task.
    """

    recipe = Recipe(epochs=10, batch_size=128, lr=0.01, optimizer="sgd", weight_decay=2e-4, schedule="cosine")

    def __init__(self, backbone: Backbone, *, length: int = 10, clusters: int = 5) -> None:
        super().__init__(backbone)
        check_positive(length=length, clusters=clusters)
        self.length = length
        self.prompts = PerTask()  # T of (P, D)
        self.keys = ClusterKeys(backbone.dim, clusters)
        self.head = TaskHeads(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add a prompt, centres and rows of the head."""
        super().begin_task(task)
        bound = self.backbone.arch.dim**-0.5
        self.prompts.add(torch.empty(self.length, self.backbone.arch.dim, device=self.device).uniform_(-bound, bound))
        self.keys.begin(len(task.classes), device=self.device)
        self.head.grow(len(task.classes), device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; the task's centres are set before it."""
        fit = self.keys.fit
        return [Stage(self.loss, prepare=lambda: fit(*task.extract_features(self.query), task.classes))]

    def features(self, x: Tensor, prompts: Tensor) -> Tensor:
        """Features (B, D) with prompts (B | 1, P, D) among the tokens."""
        tokens = self.backbone.embed(x).insert(prompts, at=1)
        if self.backbone.readout == "cls":
            return self.backbone.features(tokens)
        return self.backbone.pool(self.backbone.run(tokens).without(1, self.length))

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.features(x, self.prompts[-1][None]), y)}

    def task_scores(self, x: Tensor) -> Tensor:
        """Negative distance (B, T) of q(x) to the nearest centre of every task."""
        return self.keys.match(self.query(x), self.task_sizes.tolist())

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the prompts of ``tasks``; those of other tasks' classes are lowered."""
        logits = self.head(self.features(x, self.prompts.stacked()[tasks]))
        return logits - LOWERED * (self.task_of_class != tasks[:, None])
