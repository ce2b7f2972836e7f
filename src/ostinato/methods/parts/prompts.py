"""Base class of prompts: learned tokens or prefixes beside the input of a frozen encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Edit, Plan, Tokens
from ostinato.choices import Options
from ostinato.methods.base import LearnTask, Losses, plain_step
from ostinato.nn import TaskHeads
from ostinato.nn.projection import GradientProjection, sampled

Edits = dict[int, Edit]


class Head(Protocol):
    """Interface of a classifier that grows with the tasks."""

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Add the classes of a task."""
        ...

    def close(self) -> None:
        """Close the newest task."""
        ...

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of features (B, D) and labels (B,) among all classes, over the classes of the newest task."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (..., n_seen) of features (..., D)."""
        ...


class LinearHead(TaskHeads):
    """Linear classifier with the interface of :class:`Head`."""

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Add the rows of a task."""
        self.grow(len(task.classes), device=device)

    def close(self) -> None:
        """Do nothing; the next task freezes the rows."""


class Prompts(nn.Module):
    """Base class of prompts; adds none itself.

    Args:
        backbone: the frozen encoder.
        shares: of the energy of old rows that updates of each of :meth:`protected` must avoid; none switches it off.
        blocks: of a row, see :class:`ostinato.nn.projection.Covariance`.
        widths: of each of :meth:`protected`; none for the width of tokens.

    Attributes:
        task_layers: layers whose prefixes differ between tasks.
        registered_after: parts of a method to register before its prompts; the order of parameters decides the last
            bits of the clipped gradient norm.
        images: number of training images per task for the projection.
    """

    registered_after: ClassVar[tuple[str, ...]] = ()
    images: ClassVar[int] = 256

    def __init__(
        self, backbone: Backbone, shares: Sequence[float] = (), *, blocks: int = 1, widths: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.task_layers: tuple[int, ...] = ()
        self.projection = GradientProjection(shares, widths or backbone.arch.dim, blocks=blocks)

    def make_head(self) -> nn.Module:
        """A classifier of the features, with the interface of :class:`Head`."""
        return LinearHead(self.dim)

    @property
    def dim(self) -> int:
        """Width D of the features that :meth:`read` returns."""
        return self.backbone.dim

    @property
    def first(self) -> int:
        """The lowest layer that prompts change; -1 for prompts among the tokens, the depth for none."""
        return self.backbone.arch.depth

    def begin_task(self) -> None:
        """Add the prompts of a task."""

    def enter(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> tuple[Tokens, Losses]:  # noqa: ARG002 - of pools
        """Tokens (B, N, D) of layer 0 with prompts, and loss terms of the prompts.

        Args:
            x: samples.
            query: from samples to the features q(x), (B, D), of the plain backbone.
        """
        return self.backbone.embed(x), {}

    def under(self, task: int) -> Edits:  # noqa: ARG002 - of prefixes
        """Prefixes by layer of one task for all samples; -1 is the newest."""
        return {}

    def under_each(self, tasks: Tensor) -> Edits:  # noqa: ARG002 - of prefixes
        """Prefixes by layer of the tasks (B,) of the samples."""
        return {}

    def under_all(self) -> Edits:
        """Prefixes by layer of all tasks, for states (T, B, N, D)."""
        return {}

    def read(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (..., D) of states before layer ``start``, under a plan."""
        return self.backbone.features(tokens, plan, start=start)

    def protected(self) -> list[Tensor]:
        """Detached parameters (..., D) whose updates are projected."""
        return []

    def rows(self, x: Tensor) -> list[Tensor]:  # noqa: ARG002 - of those that are projected
        """Rows (n, D) that multiply each of :meth:`protected` in the forward pass of samples."""
        return []

    def step(self, task: LearnTask) -> Callable[[torch.optim.Optimizer], None]:
        """Step of the optimiser; with projection, its updates are projected from the second task on."""
        if not self.projection.on or task.index == 0:
            return plain_step
        return lambda optimizer: self.projection.step(optimizer, self.protected())

    def end_task(self, task: LearnTask) -> None:
        """With projection, collect the directions of a task's samples."""
        if self.projection.on:
            self.projection.collect(sampled(task.eval_batches(), len(task.train), self.images), self.rows)


class NoPromptOptions(Options, frozen=True):
    """No prompts."""

    name: Literal["none"] = "none"

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Prompts:  # noqa: ARG002 - of the others
        """Make no prompts."""
        return Prompts(backbone)
