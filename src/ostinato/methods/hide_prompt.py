"""HiDe-Prompt: within-task prediction, task-identity inference and task-adaptive prediction, each trained for itself.

Wang, Xie, Zhang, Huang, Su, Zhu: "Hierarchical Decomposition of Prompt-Based Continual Learning: Rethinking Obscured
Sub-optimality", NeurIPS 2023, https://arxiv.org/abs/2310.07234.

1. Within-task prediction: prefixes e_t of the task and its rows of the head are trained by cross-entropy over its
   classes, under the ensemble ``p_t = (1 - m) e_t + m mean_{i < t} p_i``. A contrast term keeps features apart from old
   classes: the cross-entropy of ``softmax(M M^T / 0.8)`` with the identity, where the rows of M are the means of old
   classes' features and the features of the batch.
2. Task-identity inference (``tii``): a head on the plain features q(x) is trained on draws from a Gaussian of q(x) per
   class. The task of an image is that of the class with the largest logit.
3. Task-adaptive prediction (``align``): the head is trained on draws from a Gaussian per class of the features under
   its task's prefixes. The classes of all tasks compete under the prefixes of the inferred task.

Differences from the paper: the head of step 2 learns from draws alone, without the MLP before it and the training on
images of the public code. Classes have a full covariance in place of several centroids. In step 1 a contrast term as in
the public code is used, and one learning rate: there, prefixes have ten times that of the head. The prefixes of a task
begin as a copy of those of the task before. Pixels are normalised as the weights expect. A task of one class competes
with the frozen rows of earlier classes. The recipe is the public code's for CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone, LayerPlan
from ostinato.choices import Choice, Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring, check_layers, check_positive
from ostinato.methods.parts.alignment import GaussianAlignment, GaussianOptions
from ostinato.methods.parts.prefixes import Prefixes, PrefixOptions
from ostinato.methods.parts.prompts import Edits
from ostinato.nn import TaskHeads
from ostinato.nn.matching import nearest_per_task
from ostinato.registry import register

ALIGNMENT = Choice(GaussianOptions(epochs=30, lr=0.005, samples=120, schedule="cosine_per_epoch"))
"""Training of both heads on draws."""

TEMPERATURE = 0.8


@register("hide_prompt")
class HiDePrompt(TaskInferring):
    """Prefixes per task, a head for tasks on plain features, and an aligned head for classes.

    Args:
        backbone: the frozen encoder.
        layers: layers with prefixes, from 0.
        length: positions of a prefix.
        momentum: m, share of the mean of earlier prefixes in those of a task, in [0, 1).
        contrast: weight of the contrast term; 0 omits it.
        align: options of the training of both heads on draws.
    """

    recipe = Recipe(
        epochs=50, batch_size=24, lr=0.03 * 24 / 256, optimizer="adam", clip=1.0, schedule="multistep",
        milestones=(0.6,),
    )  # fmt: skip

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: tuple[int, ...] = (0, 1, 2, 3, 4),
        length: int = 5,
        momentum: float = 0.01,
        contrast: float = 0.1,
        align: Annotated[Part, ALIGNMENT] = "gaussians",
    ) -> None:
        super().__init__(backbone)
        check_positive(length=length)
        if not layers:
            raise InputError("method.layers must name at least one layer.")
        if not 0 <= momentum < 1 or contrast < 0:
            raise InputError(
                f"method.momentum must lie in [0, 1) and method.contrast must not be negative, got {momentum} and "
                f"{contrast}."
            )
        layers = check_layers("layers", layers, backbone.arch.depth)
        self.momentum, self.contrast = momentum, contrast
        self.prompts = Prefixes(backbone, PrefixOptions(g_layers=(), e_layers=layers, e_length=length))
        options = ALIGNMENT.read(align, "method.align")
        self.head = TaskHeads(backbone.dim, freeze_old=False)
        self.tii_head = TaskHeads(backbone.dim, freeze_old=False)
        self.alignment: GaussianAlignment = options.build(backbone.dim)
        self.tii_alignment: GaussianAlignment = options.build(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add prefixes, and rows of both heads."""
        super().begin_task(task)
        self.prompts.begin_task()
        self.head.grow(len(task.classes), device=self.device)
        self.tii_head.grow(len(task.classes), device=self.device)
        self.tii_head.requires_grad_(task.index > 0)

    def ensemble(self) -> Edits:
        """Prefixes p_t of the newest task by layer."""
        *old, newest = self.prompts.e_prompt
        return self.prompts.edits(self._mixed(old, newest)[None])

    def _mixed(self, old: Sequence[Tensor], newest: Tensor) -> Tensor:
        if not old or not self.momentum:
            return newest
        return (1 - self.momentum) * newest + self.momentum * torch.stack(tuple(old)).mean(0)

    def features(self, x: Tensor, prefixes: Edits) -> Tensor:
        """Features (B, D) under the prefixes of each layer."""
        return self.backbone(x, LayerPlan(prefixes))

    def _newest_features(self, x: Tensor) -> Tensor:
        return self.features(x, self.ensemble())

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Train prefixes and the task's rows of the head; then both heads on draws."""
        trained = [self.prompts.e_prompt[-1], self.head.weight[-1], self.head.bias[-1]]
        tii = self.tii_alignment.stages(task, self.tii_head, self.query)
        return [
            Stage(self.loss, params=trained),
            *(replace(stage, name="tii") for stage in tii),
            *self.alignment.stages(task, self.head, self._newest_features),
        ]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, and the contrast term."""
        features = self._newest_features(x)
        losses = {"ce": self.head.loss(features, y)}
        if self.contrast:
            rows = torch.cat([self.alignment.gaussians.means, features])
            places = torch.arange(len(rows), device=rows.device)
            losses["contrast"] = self.contrast * F.cross_entropy(rows @ rows.T / TEMPERATURE, places)
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Keep the ensemble as the prefixes of the task, and the statistics that no stage has collected."""
        self.tii_alignment.end_task(task, self.tii_head, self.query)
        self.alignment.end_task(task, self.head, self._newest_features)
        *old, newest = self.prompts.e_prompt
        newest.copy_(self._mixed(old, newest))

    def task_scores(self, x: Tensor) -> Tensor:
        """Largest logit (B, T) of the plain features among the classes of every task."""
        return nearest_per_task(self.tii_head(self.query(x)), self.task_sizes.tolist())

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the prefixes of ``tasks``."""
        return self.head(self.features(x, self.prompts.under_each(tasks)))
