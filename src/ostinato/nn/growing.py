"""Learned state that grows with the stream and loads back at whatever size it was saved."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """A module whose own buffers may have another shape in a checkpoint than now.

    ``load_state_dict`` resizes them first, so that a fresh object takes the state of a long stream without
    knowing how many tasks or classes it saw.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name, old in self._buffers.items():
            new = state_dict.get(prefix + name)
            if old is not None and new is not None and old.shape != new.shape:
                self._buffers[name] = old.new_empty(new.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


class PerTask(nn.ParameterList):
    """One parameter per task, of which only the newest trains.

    Args:
        freeze_old: False keeps the parameters of earlier tasks trainable too (sequential fine-tuning).
    """

    def __init__(self, *, freeze_old: bool = True) -> None:
        super().__init__()
        self.freeze_old = freeze_old

    def add(self, value: Tensor) -> None:
        """Append the parameter of a new task, trainable, and freeze the ones before it."""
        self.append(nn.Parameter(value))
        self._freeze()

    def _freeze(self) -> None:
        for i, p in enumerate(self):
            p.requires_grad_(not self.freeze_old or i == len(self) - 1)

    def stacked(self) -> Tensor:
        """All tasks in one tensor (T, ...); the parameters must have one shape."""
        return torch.stack(list(self))

    def joined(self) -> Tensor:
        """All tasks joined along the first axis."""
        return torch.cat(list(self))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        device = next((p.device for p in self), None)
        while (key := f"{prefix}{len(self)}") in state_dict:
            saved = state_dict[key]
            self.append(nn.Parameter(torch.empty_like(saved, device=device or saved.device)))
        self._freeze()
        super()._load_from_state_dict(state_dict, prefix, *args)
