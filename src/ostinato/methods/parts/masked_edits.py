"""Masks per task over prompts, and what analyses read of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ostinato.backbones import LinearEdit
from ostinato.methods.parts.task_edits import TaskEdits, edited


class MaskedEdits(TaskEdits):
    """Base class of methods whose edits are masks of frozen weights, one per task."""

    def mask_values(self, task: int) -> dict[str, Tensor]:
        """The masks of a task, (out, in) by ``layer.map``."""
        with torch.no_grad():
            return {f"{i}.{name}": self._mask(task, i, name).detach() for i, name in self.bank.places}

    def masked_weights(self, task: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The frozen weights and those that a task's masks leave, each (out, in), by ``layer.map``."""
        found: dict[str, tuple[Tensor, Tensor]] = {}
        for name, mask in self.mask_values(task).items():
            layer, _, part = name.partition(".")
            weight = self.backbone.encoder.weight(int(layer), part).float()
            found[name] = weight, weight * mask
        return found

    def scores_between(self, x: Tensor, task: int, points: Sequence[tuple[int, float]]) -> Tensor:
        """Logits (points, B, n_seen) under a task's prompts and ``(1 - share)`` of its masks plus ``share`` of others'.

        Layers below ``split`` run once.

        Args:
            x: inputs (B, ...).
            task: whose prompts are used.
            points: the other task, and its share: 0 for the masks of ``task``, 1 for the other ones; further numbers
                extend the line.
        """
        states, prompts = self.shared(x), self.prompts.under(task)
        plans = (edited(prompts, self.bank.each(partial(self._between, task, *point))) for point in points)
        return torch.stack([self.head(self.prompts.read(states, plan, start=self.split)) for plan in plans])

    def _between(self, task: int, other: int, share: float, layer: int, name: str) -> LinearEdit:
        return LinearEdit(mask=torch.lerp(self._mask(task, layer, name), self._mask(other, layer, name), share))

    def _mask(self, task: int, layer: int, name: str) -> Tensor:
        return cast(Tensor, self.bank.edit(layer, name, task).mask)
