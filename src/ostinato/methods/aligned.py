"""A linear head on frozen features with classifier alignment: what remains of a prompt method without prompts.

The rows of a task are trained with cross-entropy over its classes. After each task from the second on, all rows are
trained again on draws from class Gaussians (classifier alignment). LiEPrompt and layer-grouped prompts have the same
head on features under their prompts, and Soft-TransFormers without alignment (``align=none``) on features under its
masks. Beside them, this method shows how much of the result the edits give.

Zhang, Wang, Kang, Chen, Wei: "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model", ICCV 2023, https://arxiv.org/abs/2303.05118.

Differences from the paper: the encoder is frozen, where the paper trains it at a small rate, and logits are not
normalised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.choices import Choice, Part
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.alignment import GaussianOptions, NoAlignmentOptions
from ostinato.nn import TaskHeads
from ostinato.registry import register

ALIGNMENT = Choice(GaussianOptions(), NoAlignmentOptions())
"""Alignment of the head. With that of the discriminant, the method would be SLDA."""


@register("aligned")
class Aligned(Method):
    """A linear head on frozen features, aligned on class Gaussians.

    Args:
        backbone: the frozen encoder.
        align: "gaussians", see :class:`GaussianOptions`, or "none".
    """

    recipe = Recipe(epochs=5, batch_size=32, lr=1e-3, optimizer="adam", schedule="cosine")

    def __init__(self, backbone: Backbone, *, align: Annotated[Part, ALIGNMENT] = "gaussians") -> None:
        super().__init__(backbone)
        self.alignment = ALIGNMENT.read(align, "method.align").build(backbone.dim)
        self.head = TaskHeads(backbone.dim, freeze_old=not self.alignment.aligns)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's rows of the head."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Train the task's rows of the head, then align all rows."""
        fit = Stage(self.loss, params=[self.head.weight[-1], self.head.bias[-1]])
        return [fit, *self.alignment.stages(task, self.head, self.query)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.query(x), y)}

    def end_task(self, task: LearnTask) -> None:
        """Collect the Gaussians of the first task."""
        self.alignment.end_task(task, self.head, self.query)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.query(x))
