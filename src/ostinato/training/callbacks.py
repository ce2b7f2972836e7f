"""Hooks of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ostinato.methods.base import Stage


@dataclass(frozen=True)
class Seen:
    """Observations of a stage for the checks of later steps; plain numbers, for checkpoints.

    Attributes:
        first: loss of the first step; None before it.
        reached: whether the trained parameters had a gradient other than zero.
        exploded: whether the loss exploded.
    """

    first: float | None = None
    reached: bool = False
    exploded: bool = False


@dataclass(frozen=True)
class Position:
    """Position inside a task.

    Attributes:
        stage: number of the stage, from 0.
        step: finished steps of the stage.
        seen: observations of these steps, so that a resumed stage warns as an uninterrupted one.
    """

    stage: int
    step: int
    seen: Seen = field(default=Seen(), compare=False)


class Callback:
    """Hooks of training and evaluation, for progress, logs and checkpoints; they do nothing here.

    An exception from a hook stops training at that point.
    """

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:
        """Called when a stage of a task (from 0) starts or resumes, with ``step`` of its ``steps`` finished."""

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:
        """Called after a training step.

        Args:
            position: after the step.
            losses: terms over the whole batch.
            optimizer: of the stage.
            n: samples of the step.
        """

    def on_batch(self, n: int) -> None:
        """Called after a batch of ``n`` samples in a pass without training."""

    def on_warning(self, text: str) -> None:
        """Called with a warning about the training."""
