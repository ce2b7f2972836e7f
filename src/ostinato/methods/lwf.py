"""LwF: learning without forgetting, distillation on the new task's samples.

Li, Hoiem: "Learning without Forgetting", ECCV 2016, https://arxiv.org/abs/1606.09282.

On every batch of a task, cross-entropy over its classes is joined by distillation (equation 2) of the logits of the old
classes from the model before the task:

    CE(new logits, y) - lambda mean sum_c p_c log q_c,   p, q = softmax(old logits / T) before and now, T = 2.

Differences from the paper: the softmax of distillation is over all old classes, where the paper has one per old task,
since classes of all tasks compete at test. The old logits are those of the same augmented image, where the paper
records one per image. There is no warm-up of the new rows of the head alone. The recipe is that of ``finetune``.
"""

from __future__ import annotations

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses
from ostinato.methods.finetune import Finetune
from ostinato.nn.distillation import OldModel, distillation
from ostinato.registry import register


@register("lwf")
class LwF(Finetune):
    """Fine-tuning with distillation from the model before the task.

    Args:
        backbone: the encoder, which is trained.
        weight: lambda, weight of distillation.
        temperature: T.
    """

    def __init__(self, backbone: Backbone, *, weight: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__(backbone)
        if weight <= 0 or temperature <= 0:
            raise InputError(f"method.weight and method.temperature must be positive, got {weight} and {temperature}.")
        self.weight, self.temperature = weight, temperature
        self.old = OldModel()

    def begin_task(self, task: LearnTask) -> None:
        """Copy the model from the second task on, and add a row per new class."""
        if self.n_tasks:
            self.old.copy(self.backbone, self.head.weight.joined(), self.head.bias.joined())
        super().begin_task(task)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes; from the second task on, also distillation."""
        features = self.features(x)
        losses = {"ce": self.head.loss(features, y)}
        if n := len(self.old):
            old = self.old.logits(self.backbone, x)
            losses["kd"] = self.weight * distillation(self.head(features)[:, :n], old, self.temperature)
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Drop the copy."""
        super().end_task(task)
        self.old.drop()
