"""Hooks of the training loop."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ostinato.methods.base import Stage


@dataclass(frozen=True)
class Seen:
    """What a stage saw so far that its later steps are held against; plain numbers, for checkpoints.

    Attributes:
        first: the loss of the first step; None before it.
        reached: whether a gradient other than zero reached the trained parameters.
        exploded: whether the loss exploded.
    """

    first: float | None = None
    reached: bool = False
    exploded: bool = False


@dataclass(frozen=True)
class Position:
    """A place inside a task.

    Attributes:
        stage: number of the stage.
        step: steps done in it.
        seen: what these steps have shown; a resumed stage warns of the same things as a whole one if it is kept.
    """

    stage: int
    step: int
    seen: Seen = field(default=Seen(), compare=False)


class Callback:
    """Hooks of training and evaluation, each of which does nothing here; a subclass overrides those that it needs.

    A run uses them for progress, logs and checkpoints. An exception from a hook stops training at that point.
    """

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:
        """A stage begins or goes on.

        Args:
            task: its number, from 0.
            stage: of the task.
            step: steps of the stage that are done.
            steps: of the stage in all.
        """

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:
        """A training step is done.

        Args:
            position: after the step.
            losses: terms over the whole batch.
            optimizer: of the stage.
            n: samples of the step.
        """

    def on_batch(self, n: int) -> None:
        """A batch of ``n`` samples is done in a pass without training."""

    def on_warning(self, text: str) -> None:
        """Training goes on although something is wrong with it."""
