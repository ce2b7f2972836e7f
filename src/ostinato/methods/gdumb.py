"""GDumb: a balanced memory, and a model that is trained on it alone.

Prabhu, Torr, Dokania: "GDumb: A Simple Approach that Questions Our Progress in Continual Learning", ECCV 2020,
https://www.robots.ox.ac.uk/~tvg/publications/2020/gdumb.pdf.

A greedy sampler keeps equally many samples of every class within a budget. For every evaluation, a fresh model is
trained on these samples alone, with cross-entropy over all classes seen.

Differences from the paper: the model starts from the pre-trained weights, and is trained after every task. Samples of a
class are drawn at random from the task, where the paper keeps those of a greedy pass over a stream. The learning rate
falls once along a cosine, without restarts, and there is no CutMix or other augmentation. The paper trains a ResNet
from scratch for 256 epochs; the recipe here suits pre-trained transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.choices import Choice, Part
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage
from ostinato.methods.finetune import Finetune
from ostinato.methods.parts.memory import Memory, Positions, RandomOptions
from ostinato.nn import TaskHeads
from ostinato.registry import register

BALANCED = Choice(RandomOptions())


@register("gdumb")
class GDumb(Finetune):
    """Training on a balanced memory alone, from the pre-trained weights after every task.

    Args:
        backbone: the encoder, which is trained.
        memory: kept samples: "random".
    """

    recipe = Recipe(epochs=30, batch_size=16, lr=0.01, optimizer="sgd", weight_decay=1e-6, schedule="cosine", clip=1.0)
    data_seen = "memory"

    def __init__(self, backbone: Backbone, *, memory: Annotated[Part, BALANCED] = "random") -> None:
        super().__init__(backbone)
        self.memory = Memory(backbone, BALANCED.read(memory, "method.memory"))
        self._initial_weights = {name: value.clone() for name, value in backbone.state_dict().items()}

    def begin_task(self, task: LearnTask) -> None:
        """Update the memory; start from the pre-trained weights and a fresh head."""
        super().begin_task(task)
        self.memory.update(task, self.query)
        self.backbone.load_state_dict(self._initial_weights)
        self.head = TaskHeads(self.backbone.dim, freeze_old=False)
        with torch.no_grad():
            for size in self.classes_per_task:
                self.head.grow(size, device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:  # noqa: ARG002 - the memory holds the task's samples
        """One stage on the memory."""
        return [Stage(self.memory_loss, data=Positions(self.memory))]

    def memory_loss(self, rows: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen, of samples at positions (B,) in the memory."""
        return super().loss(self.memory.at(rows), y)
