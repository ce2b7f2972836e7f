"""BiC: bias correction of the newest classes.

Wu, Chen, Wang, Ye, Liu, Guo, Fu: "Large Scale Incremental Learning", CVPR 2019, https://arxiv.org/abs/1905.13260.

1. Training, on the task's samples and exemplars, with n old and m new classes, T = 2 (equations 1 to 3):
   ``lambda L_d + (1 - lambda) L_c`` with ``lambda = n / (n + m)``, distillation L_d of the old logits from the
   corrected model before the task, and cross-entropy L_c over all classes.
2. Bias correction (equations 4 and 5): the logits o_k of the task's classes become ``a o_k + b``. These two numbers are
   trained by cross-entropy on held-out samples, equally many of every class, with the model fixed.

A tenth of the exemplars of every class is held out, and never trained on in the first stage.

Differences from the paper: each batch of the task is joined by drawn exemplars in proportion to their number, where the
paper passes over both. Exemplars are not augmented, and are chosen by herding. The paper trains a ResNet from scratch;
the recipe here is that of ``finetune``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.choices import Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage
from ostinato.methods.finetune import Finetune
from ostinato.methods.parts.memory import (
    CLASS_MEMORY,
    Memory,
    Positions,
    RandomOptions,
    Subset,
    no_features,
    random_of_each_class,
)
from ostinato.nn.distillation import OldModel, distillation
from ostinato.nn.exemplars import first_of_each_class
from ostinato.registry import register

TEMPERATURE = 2.0

CORRECTION = Recipe(epochs=30, batch_size=256, lr=0.05, optimizer="adam")
"""Of the bias correction, on logits that are computed once."""


@register("bic")
class BiC(Finetune):
    """Fine-tuning with exemplars and distillation, then bias correction.

    Args:
        backbone: the encoder, which is trained.
        memory: kept samples, with those held out: "herding" or "random".
        held_out: share of the exemplars for bias correction, in (0, 0.5]; at least one per class.
    """

    data_seen = "memory"
    held_rows: Tensor
    held_logits: Tensor

    def __init__(
        self, backbone: Backbone, *, memory: Annotated[Part, CLASS_MEMORY] = "herding", held_out: float = 0.1
    ) -> None:
        super().__init__(backbone)
        if not 0 < held_out <= 0.5:
            raise InputError(f"method.held_out must lie in (0, 0.5], got {held_out}.")
        self.held_out = held_out
        options = CLASS_MEMORY.read(memory, "method.memory")
        self.memory = Memory(backbone, options)
        self.held = Memory(backbone, RandomOptions(size=options.size, per=options.per))
        self.old = OldModel()
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))  # a and b
        self.register_buffer("held_rows", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("held_logits", torch.zeros(0, 0))

    def quotas(self, n_classes: int) -> tuple[int, int]:
        """Exemplars per class for training and held out.

        Raises:
            InputError: if the budget is below two per class.
        """
        both = self.memory.share(n_classes)
        held = max(1, round(self.held_out * both))
        if held >= both:
            raise InputError(
                f"method.memory.size must allow two exemplars of each of the {n_classes} classes seen, one of them "
                f"held out, got {self.memory.options.size}. Raise it."
            )
        return both - held, held

    def begin_task(self, task: LearnTask) -> None:
        """Copy the corrected model, hold samples out, and add a row per new class."""
        _, n_held = self.quotas(task.classes.stop)
        if self.n_tasks:
            self.old.copy(self.backbone, *self._corrected())
        super().begin_task(task)
        self.scale.data.fill_(1)
        self.shift.data.fill_(0)
        self._correct(task.index > 0)
        _, labels = task.extract_features(no_features)
        fewest = torch.bincount(labels - task.classes.start, minlength=len(task.classes)).min()
        self.held_rows = random_of_each_class(labels, min(n_held, int(fewest) // 2)).sort().values
        self.held.trim(n_held)
        self.held.store(task, self.held_rows)

    def _correct(self, on: bool) -> None:
        for p in (self.scale, self.shift):
            p.requires_grad_(on)

    def _corrected(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the head with the correction in the newest rows."""
        *weights, weight = self.head.weight
        *biases, bias = self.head.bias
        return torch.cat([*weights, self.scale * weight]), torch.cat([*biases, self.scale * bias + self.shift])

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Training without the samples held out, and from the second task on the bias correction."""
        held = set(self.held_rows.tolist())
        rows = [i for i in range(len(task.train)) if i not in held]
        params = [*self.backbone.parameters(), *self.head.parameters()]
        train = Stage(lambda x, y: self.joined_loss(x, y, len(rows)), data=Subset(task.train, rows), params=params)
        if not len(self.old) or not len(self.held_rows):
            return [train]
        balanced = first_of_each_class(self.held.y, len(self.held_rows) // len(task.classes))
        correct = Stage(
            self.correction_loss, name="correct", data=Positions(self.held, balanced), recipe=CORRECTION,
            params=[self.scale, self.shift], prepare=self._compute_held,
        )  # fmt: skip
        return [train, correct]

    def joined_loss(self, x: Tensor, y: Tensor, n: int) -> Losses:
        """Cross-entropy and distillation, on a batch out of ``n`` samples and on exemplars beside it."""
        parts = [(x, y)]
        if len(self.memory):
            parts.append(self.memory.batch(self.memory.count_beside(len(x), n)))
        logits = torch.cat([self.head(self.features(inputs)) for inputs, _ in parts])
        ce = F.cross_entropy(logits, torch.cat([labels for _, labels in parts]))
        if not (k := len(self.old)):
            return {"ce": ce}
        old = torch.cat([self.old.logits(self.backbone, inputs) for inputs, _ in parts])
        share = k / self.n_seen
        return {"ce": (1 - share) * ce, "kd": share * distillation(logits[:, :k], old, TEMPERATURE)}

    def _compute_held(self) -> None:
        self.held_logits = torch.cat([self.head(self.features(x)) for x in self.held.batches()])

    def correction_loss(self, rows: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes of the corrected logits of held-out samples at positions (B,)."""
        return {"ce": F.cross_entropy(self.corrected(self.held_logits[rows]), y)}

    def corrected(self, logits: Tensor) -> Tensor:
        """Logits (B, n_seen) with ``a o_k + b`` for the newest task's classes."""
        first = self.n_seen - self.classes_per_task[-1]
        return torch.cat([logits[:, :first], self.scale * logits[:, first:] + self.shift], dim=1)

    def end_task(self, task: LearnTask) -> None:
        """Update the exemplars, without the samples held out, and drop the copy."""
        super().end_task(task)
        self.old.drop()
        self.held_logits = self.held_logits.new_zeros(0, 0)
        self.memory.update(task, self.features, n=self.quotas(self.n_seen)[0], without=self.held_rows)
        self.held_rows = self.held_rows[:0]

    def scores(self, x: Tensor) -> Tensor:
        """Corrected logits (B, n_seen)."""
        return self.corrected(super().scores(x))
