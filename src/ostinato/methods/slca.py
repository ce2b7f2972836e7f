"""SLCA: a slow learner of the whole encoder, with classifier alignment.

Zhang, Wang, Kang, Chen, Wei: "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model", ICCV 2023, https://arxiv.org/abs/2303.05118.

1. Slow learner: encoder and new rows of the head are trained by cross-entropy over the task's classes. The rate of the
   encoder is a hundredth of that of the head (``train.backbone_lr_factor``).
2. Classifier alignment, from the second task on: a copy of the head is trained on features drawn from a Gaussian per
   class, by cross-entropy of ``z / (0.1 n)``, where n is the mean over tasks of the length of a task's logits in z. The
   Gaussian is that of the features right after the class's task. Scores are those of the aligned copy; the next task
   continues from the head before the alignment.

Differences from the paper: draws are around the means themselves, where the public code scales the means by 0.9 to 1,
by the age of the class.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone
from ostinato.choices import Choice, Part
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.alignment import GaussianAlignment, GaussianOptions
from ostinato.nn import TaskHeads
from ostinato.registry import register

ALIGNMENT = Choice(GaussianOptions(epochs=5, lr=0.01, samples=256))

TEMPERATURE = 0.1


class Normalised(nn.Module):
    """A head with logits over 0.1 times the mean length of the tasks' logits.

    Args:
        head: linear head with a block of rows per task.
    """

    def __init__(self, head: TaskHeads) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D)."""
        logits = self.head(features)
        blocks = logits.split([len(rows) for rows in self.head.weight], dim=1)
        length = torch.stack([block.norm(dim=1) for block in blocks]).mean(0)
        return logits / (TEMPERATURE * length.clamp(min=1e-7)[:, None])


@register("slca")
class SLCA(Method):
    """Slow training of the encoder, and an aligned head.

    Args:
        backbone: the encoder, which is trained.
        align: options of the alignment.
    """

    recipe = Recipe(
        epochs=20, batch_size=128, lr=0.01, optimizer="sgd", weight_decay=5e-4, schedule="multistep", milestones=(0.9,),
        backbone_lr_factor=0.01,
    )  # fmt: skip

    def __init__(self, backbone: Backbone, *, align: Annotated[Part, ALIGNMENT] = "gaussians") -> None:
        super().__init__(backbone, trains_backbone=True)
        self.head = TaskHeads(backbone.dim)
        self.aligned = TaskHeads(backbone.dim, freeze_old=False)
        self.alignment: GaussianAlignment = ALIGNMENT.read(align, "method.align").build(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add a row per new class to both heads."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)
        self.aligned.grow(len(task.classes), device=self.device)
        self.aligned.requires_grad_(task.index > 0)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Train encoder and new rows, then align a copy of the head."""
        rows = [self.head.weight[-1], self.head.bias[-1]]
        fit = Stage(self.loss, params=[*self.backbone.parameters(), *rows])
        if task.index == 0:
            return [fit]
        (align,) = self.alignment.stages(task, Normalised(self.aligned), self.backbone)
        return [fit, replace(align, prepare=partial(self._begin_alignment, task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.backbone(x), y)}

    def _begin_alignment(self, task: LearnTask) -> None:
        self.alignment.collect(task, self.backbone)
        self.aligned.load_state_dict(self.head.state_dict())

    def end_task(self, task: LearnTask) -> None:
        """Add the Gaussians of the first task, which has no alignment."""
        self.alignment.end_task(task, self.aligned, self.backbone)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen): of the aligned head from the second task on."""
        head = self.head if self.n_tasks == 1 else self.aligned
        return head(self.backbone(x))
