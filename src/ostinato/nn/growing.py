"""Learned state that grows with the stream and loads at its saved size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn


class Growing(nn.Module):
    """A module whose own buffers ``load_state_dict`` resizes to the saved shapes.

    A fresh object can thus load the state of a stream of any length.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_pre_hook(_resize_buffers)


def _resize_buffers(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, old in module._buffers.items():
        new = state_dict.get(prefix + name)
        if old is not None and new is not None and old.shape != new.shape:
            module._buffers[name] = old.new_empty(new.shape)


class PerTask(nn.ParameterList):
    """One parameter per task, of which only the newest trains.

    Args:
        freeze_old: False keeps the parameters of earlier tasks trainable (sequential fine-tuning).
        trains: False makes all of them constants, for values set from data.
    """

    def __init__(self, *, freeze_old: bool = True, trains: bool = True) -> None:
        super().__init__()
        self.freeze_old, self.trains = freeze_old, trains
        self.register_load_state_dict_pre_hook(_add_tasks)

    def __iter__(self) -> Iterator[nn.Parameter]:
        """Iterate in the order of tasks; torch's own iterator looks each parameter up by name, which is slower."""
        return iter(cast(dict[str, nn.Parameter], self._parameters).values())

    def add(self, value: Tensor) -> None:
        """Append the parameter of a new task and freeze the earlier ones."""
        self.append(nn.Parameter(value))
        for i, p in enumerate(self):
            p.requires_grad_(self.trains and (not self.freeze_old or i == len(self) - 1))

    def stacked(self) -> Tensor:
        """The parameters, all of one shape, as a tensor (T, ...)."""
        return torch.stack(list(self))

    def joined(self) -> Tensor:
        """The parameters concatenated along the first axis."""
        return torch.cat(list(self))


def _add_tasks(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if isinstance(module, PerTask):
        device = next((p.device for p in module), None)
        while (key := f"{prefix}{len(module)}") in state_dict:
            saved = state_dict[key]
            module.add(torch.empty_like(saved, device=device or saved.device))


def resize_parameters(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook that resizes a module's own trainable parameters to the saved shapes."""
    for name, old in module._parameters.items():
        new = state_dict.get(prefix + name)
        if old is not None and new is not None and old.shape != new.shape:
            module._parameters[name] = nn.Parameter(old.new_empty(new.shape))
