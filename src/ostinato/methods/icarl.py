"""iCaRL: exemplars, distillation, and classification by the nearest mean of exemplars.

Rebuffi, Kolesnikov, Sperl, Lampert: "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017,
https://arxiv.org/abs/1611.07725.

1. Training (algorithm 3), on the task's samples and all exemplars: binary cross-entropy of the logit of every class,
   with the label as target for new classes and the sigmoid of the logit before the task for old ones.
2. Exemplars: K / (classes seen) per class by herding; earlier ones are cut to the first (algorithms 4 and 5).
3. Prediction: the class whose exemplars have the nearest mean feature (algorithm 1). Features and means have length 1;
   scores are cosines.

Differences from the paper: each batch of the task is joined by drawn exemplars in proportion to their number, where the
paper passes over both. Exemplars are not augmented in training. Old logits are those of the same augmented image. The
paper trains a ResNet from scratch (SGD at rate 2, 70 epochs); the recipe here is that of ``finetune``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.choices import Part
from ostinato.methods.base import LearnTask, Losses, Stage
from ostinato.methods.finetune import Finetune
from ostinato.methods.parts.memory import CLASS_MEMORY, Memory
from ostinato.nn import cosine
from ostinato.nn.distillation import OldModel
from ostinato.nn.statistics import add_by_label
from ostinato.registry import register


@register("icarl")
class ICaRL(Finetune):
    """Nearest mean of exemplars on a trained encoder.

    Args:
        backbone: the encoder, which is trained.
        memory: kept samples: "herding" or "random".
    """

    data_seen = "memory"
    means: Tensor

    def __init__(self, backbone: Backbone, *, memory: Annotated[Part, CLASS_MEMORY] = "herding") -> None:
        super().__init__(backbone)
        self.memory = Memory(backbone, CLASS_MEMORY.read(memory, "method.memory"))
        self.old = OldModel()
        self.register_buffer("means", torch.zeros(0, backbone.dim))

    def begin_task(self, task: LearnTask) -> None:
        """Copy the model from the second task on, and add a row per new class."""
        self.memory.share(task.classes.stop)
        if self.n_tasks:
            self.old.copy(self.backbone, self.head.weight.joined(), self.head.bias.joined())
        super().begin_task(task)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage on the task's samples and exemplars."""
        return [Stage(lambda x, y: self.joined_loss(x, y, len(task.train)))]

    def joined_loss(self, x: Tensor, y: Tensor, n: int) -> Losses:
        """Binary cross-entropy, summed over classes, of a batch out of ``n`` samples and of exemplars beside it."""
        parts = [(x, y)]
        if len(self.memory):
            parts.append(self.memory.batch(self.memory.count_beside(len(x), n)))
        logits = torch.cat([self.head(self.features(inputs)) for inputs, _ in parts]).float()
        targets = F.one_hot(torch.cat([labels for _, labels in parts]), self.n_seen).to(logits)
        if k := len(self.old):
            targets[:, :k] = torch.cat([self.old.logits(self.backbone, inputs) for inputs, _ in parts]).sigmoid()
        terms = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(0) / len(logits)
        losses = {"ce": terms[k:].sum()}
        return losses | {"kd": terms[:k].sum()} if k else losses

    def end_task(self, task: LearnTask) -> None:
        """Update the exemplars, compute their means by the new encoder, and drop the copy."""
        super().end_task(task)
        self.old.drop()
        self.memory.update(task, self.features)
        features = torch.cat([F.normalize(self.features(x).float(), dim=-1) for x in self.memory.batches()])
        sums = add_by_label(features.new_zeros(self.n_seen, features.shape[1]), self.memory.y, features)
        self.means = F.normalize(sums, dim=-1)

    def scores(self, x: Tensor) -> Tensor:
        """Cosine (B, n_seen) of features with the means of exemplars."""
        return cosine(self.features(x), self.means)
