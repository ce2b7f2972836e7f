"""Masks per task over prompts, and what analyses read of them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ostinato.methods.parts.banks import LinearEdits
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

    def scores_between(self, x: Tensor, task: int, other: int, share: float) -> Tensor:
        """Logits (B, n_seen) under the prompts of a task and ``(1 - share)`` of its masks plus ``share`` of another's.

        Args:
            x: inputs (B, ...).
            task: whose prompts are used.
            other: task of the other masks.
            share: 0 for the masks of ``task``, 1 for those of ``other``; others extend the line.
        """
        own = self.linear(task)
        masks: LinearEdits = {
            i: {name: replace(edit, mask=self._blend(task, other, share, i, name)) for name, edit in maps.items()}
            for i, maps in own.items()
        }
        return self.head(self.prompts.read(self.shared(x), edited(self.prompts.under(task), masks), start=self.split))

    def _blend(self, task: int, other: int, share: float, layer: int, name: str) -> Tensor:
        return torch.lerp(self._mask(task, layer, name), self._mask(other, layer, name), share)

    def _mask(self, task: int, layer: int, name: str) -> Tensor:
        return cast(Tensor, self.bank.edit(layer, name, task).mask)
