"""Training of methods on tiny streams, without files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.contract.tiny_models import BACKBONES, Kind, transform_of
from ostinato.lookup import get_method
from ostinato.methods.base import LearnTask, Method
from ostinato.registry import check_options
from ostinato.streams import LabeledDataset, TaskStream
from ostinato.training.callbacks import Callback, Position
from ostinato.training.loop import Settings, learn_task, optimizer_tensors
from ostinato.training.precision import prepare

SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=3, overrides={"epochs": 2, "batch_size": 8})
"""Settings of two epochs, of three steps for two classes of a tiny stream."""


def settings_on(device: torch.device) -> Settings:
    """``SETTINGS`` on another device."""
    return replace(SETTINGS, device=device)


def make(
    method: str | type[Method], kind: Kind = "image", /, backbone: Backbone | None = None, **options: Any
) -> Method:
    """Make a method.

    Args:
        method: the class, or its name or file.
        kind: of the tiny encoder.
        backbone: in place of the tiny encoder.
        options: of the method.
    """
    torch.manual_seed(7)
    cls = get_method(method) if isinstance(method, str) else method
    backbone = backbone or BACKBONES[kind]()
    made = cls(backbone, **check_options(cls, options, backbone.arch.depth))
    prepare(made, SETTINGS.device, SETTINGS.dtype)
    return made.eval()


def learn_task_of(method: Method, stream: TaskStream, i: int) -> LearnTask:
    """Classes and data of task ``i`` for a method, without augmentation."""
    task = stream.task(i)
    train = task.train
    if method.data_seen == "all":
        train = LabeledDataset.concat([stream.task(j).train for j in range(i + 1)])
    plain = train.with_transform(transform_of(stream))

    def batches(positions: Sequence[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        rows = range(len(plain)) if positions is None else positions
        for start in range(0, len(rows), 8):
            x, y = plain.collate([plain[j] for j in rows[start : start + 8]])
            yield x.to(method.device), y.to(method.device)

    return LearnTask(task.index, task.classes, plain, batches, class_names=task.class_names)


def learn(
    method: Method,
    stream: TaskStream,
    upto: int | None = None,
    settings: Settings | None = None,
    callback: Callback | None = None,
) -> Method:
    """Train a method on a stream, or its first ``upto`` tasks; settings default to ``SETTINGS`` on its device."""
    settings = settings or settings_on(method.device)
    for i in range(len(stream) if upto is None else upto):
        learn_task(method, learn_task_of(method, stream, i), settings, callback)
    return method


def inputs_of(stream: TaskStream, upto: int | None = None, device: torch.device = SETTINGS.device) -> Tensor:
    """All test samples of the stream, or of its first ``upto`` tasks, as one batch on a device."""
    groups = [stream.test(i).with_transform(transform_of(stream)) for i in range(len(stream) if upto is None else upto)]
    return groups[0].collate([group[j] for group in groups for j in range(len(group))])[0].to(device)


@torch.inference_mode()
def scores(method: Method, x: Tensor) -> Tensor:
    """Scores (B, classes seen)."""
    return method.eval().scores(x)


class Steps(Callback):
    """Counts steps."""

    def __init__(self) -> None:
        self.n = 0

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:  # noqa: ARG002
        """Count up."""
        self.n += 1


class Stop(Exception):
    """Raised by :class:`StopAt`."""


class StopAt(Callback):
    """Keeps the contents of a checkpoint after ``n`` steps, and raises :class:`Stop`."""

    position: Position
    state: dict[str, Tensor]
    optimizer: dict[str, Tensor]

    def __init__(self, method: Method, n: int) -> None:
        self.method, self.left = method, n

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:  # noqa: ARG002
        """Count down."""
        self.left -= 1
        if self.left == 0:
            self.position = position
            self.state = {k: v.clone() for k, v in self.method.learned_state().items()}
            self.optimizer = {k: v.clone() for k, v in optimizer_tensors(optimizer).items()}
            raise Stop
