"""Names and functions that the public code needs under current versions of torch and timm."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import timm.layers
import timm.models._builder as builder
import timm.models._manipulate as manipulate
import torch
from torch import Tensor, nn

from benchmarks.twins.ground import Ground


def _no_effect(*_: Any, **__: Any) -> None:
    pass


def module(name: str, **names: Any) -> ModuleType:
    """Make a module importable."""
    made = sys.modules[name] = ModuleType(name)
    vars(made).update(names)
    return made


def prepare(code: Path, device: torch.device) -> None:
    """Make a checkout importable that was written for timm 0.6 and a GPU."""
    sys.path.insert(0, str(code))
    names = {n: getattr(builder, n, None) for n in ("build_model_with_cfg", "resolve_pretrained_cfg")}
    names |= {n: getattr(manipulate, n) for n in ("named_apply", "adapt_input_conv", "checkpoint_seq")}
    module("timm.models.helpers", **names)
    sys.modules["timm.models.layers"] = timm.layers
    sys.modules["timm.models.layers.weight_init"] = timm.layers
    module("timm.models.registry", register_model=lambda function: function)
    for unused in ("seaborn", "wandb"):
        module(unused, log=_no_effect)
    torch.Tensor.cuda = lambda self, *_, **__: self.to(device).clone()  # type: ignore[method-assign]
    torch.cuda.synchronize = _no_effect  # type: ignore[assignment]


def freeze(model: nn.Module, *beginnings: str) -> None:
    """Freeze the encoder and what else begins so."""
    for name, parameter in model.named_parameters():
        if name.startswith(("blocks", "patch_embed", "cls_token", "norm", "pos_embed", *beginnings)):
            parameter.requires_grad = False


def exchange_axes(prompt: type[nn.Module]) -> None:
    """Undo the reshape of prefixes across the batch in the public class ``EPrompt`` of DualPrompt and Soft-TF.

    It reads the gathered prefixes (layers, 2, B, ...) as (layers, B, 2, ...). Their axes are exchanged instead.
    """
    original = prompt.forward

    def forward(self: nn.Module, *given: Any, **named: Any) -> dict[str, Tensor]:
        found = original(self, *given, **named)
        layers, batch, two, *rest = found["batched_prompt"].shape
        found["batched_prompt"] = found["batched_prompt"].reshape(layers, two, batch, *rest).transpose(1, 2)
        return found

    prompt.forward = forward  # type: ignore[method-assign]


class Passes:
    """Loader of a task: each iteration is the next pass."""

    def __init__(self, ground: Ground, task: int) -> None:
        self.ground, self.task, self.epoch = ground, task, 0

    def __iter__(self) -> Any:
        """Batches of the next pass."""
        yield from self.ground.batches(self.task, self.epoch)
        self.epoch += 1

    def __len__(self) -> int:
        return self.ground.steps(self.task)


def data_of(ground: Ground) -> tuple[type, type]:
    """Data manager and loader of the repositories that descend from PILOT: CL-LoRA, LiEPrompt."""

    class Manager:
        def get_task_size(self, _: int) -> int:
            return ground.step

        def get_dataset(self, indices: Any, source: str, mode: str, ret_data: bool = False) -> Any:
            classes = sorted(int(i) for i in indices)
            kind = "test" if source == "test" else {"train": "train", "test": "plain"}[mode]
            tasks = sorted({c // ground.step for c in classes})
            marker = SimpleNamespace(kind=kind, classes=classes, tasks=tasks, labels=torch.tensor(classes).numpy())
            return (None, None, marker) if ret_data else marker

    class Loader:
        def __init__(self, dataset: SimpleNamespace, *_: Any, **__: Any) -> None:
            self.dataset, self.epoch = dataset, 0

        def __iter__(self) -> Any:
            asked = self.dataset
            for t in asked.tasks:
                if asked.kind == "train":
                    found = ground.batches(t, self.epoch)
                else:
                    found = ground.test(t) if asked.kind == "test" else ground.plain(t, asked.classes)
                yield from ((None, x, y) for x, y in found)
            self.epoch += 1

        def __len__(self) -> int:
            return ground.steps(0)

    return Manager, Loader
