"""DER and DER++: dark experience replay.

Buzzega, Boschini, Porrello, Abati, Calderara: "Dark Experience for General Continual Learning: a Strong, Simple
Baseline", NeurIPS 2020, https://arxiv.org/abs/2004.07211.

A reservoir keeps samples x with their labels y and the logits z that the model had for them. Every step adds

    alpha |h(x') - z'|^2 + beta CE(h(x''), y'')

to the cross-entropy of the task's batch, on two batches of its size drawn apart from the memory; h are the logits, and
the square is the mean over logits. DER has beta = 0, DER++ beta > 0.

Differences from the paper: logits and samples are kept at the end of a task, where the paper keeps them during it; this
does not depend on batches and processes. The head has no outputs for later classes, so that the square covers the
classes seen when the logits were kept. Replayed samples are not augmented. The paper trains a ResNet from scratch; the
recipe here is that of ``finetune``.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.choices import Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses
from ostinato.methods.finetune import Finetune
from ostinato.methods.parts.memory import MEMORY, Memory
from ostinato.registry import register


@register("der")
class DER(Finetune):
    """Replay of kept logits.

    Args:
        backbone: the encoder, which is trained.
        memory: kept samples: "reservoir", "random" or "herding".
        alpha: weight of the distance to kept logits.
        beta: weight of the cross-entropy of kept samples; above 0, this is DER++.
    """

    data_seen = "memory"
    kept_logits: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        memory: Annotated[Part, MEMORY] = "reservoir",
        alpha: float = 0.3,
        beta: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        if min(alpha, beta) < 0 or alpha + beta == 0:
            raise InputError(
                f"method.alpha and method.beta must not be negative, and one of them must be positive, got {alpha} and "
                f"{beta}."
            )
        self.alpha, self.beta = alpha, beta
        self.memory = Memory(backbone, MEMORY.read(memory, "method.memory"))
        self.register_buffer("kept_logits", torch.zeros(0, 0))  # (samples, classes), 0 for later classes

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen; from the second task on, also the terms of kept samples."""
        losses = super().loss(x, y)
        if not len(self.memory):
            return losses
        if self.alpha:
            rows = self.memory.draw(len(x))
            losses["logits"] = self.alpha * self.distance(rows)
        if self.beta:
            losses["replay"] = self.beta * super().loss(*self.memory.batch(len(x)))["ce"]
        return losses

    def distance(self, rows: Tensor) -> Tensor:
        """Mean square between logits now and kept logits of samples at positions (n,), over classes known then."""
        kept = self.kept_logits[rows]
        ends = self.task_sizes.cumsum(0)[self.memory.tasks[rows]]
        known = torch.arange(kept.shape[1], device=kept.device) < ends[:, None]
        now = self.head(self.features(self.memory.at(rows)))[:, : kept.shape[1]]
        return F.mse_loss(now[known], kept[known])

    def end_task(self, task: LearnTask) -> None:
        """Update the memory, and keep the logits of its new samples."""
        super().end_task(task)
        stay = self.memory.update(task, self.features)
        old = F.pad(self.kept_logits[stay], (0, self.n_seen - self.kept_logits.shape[1]))
        rows = torch.arange(len(stay), len(self.memory), device=self.device)
        new = [self.scores(self.memory.at(part)).float() for part in rows.split(64)]
        self.kept_logits = torch.cat([old, *new])
