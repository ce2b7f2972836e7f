"""Prompts: learned tokens or prefixes that a frozen encoder reads beside an input."""

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
    """A classifier of features that grows with the tasks."""

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Add the classes of a task."""
        ...

    def close(self) -> None:
        """End the newest task."""
        ...

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the classes of the newest task, of features (B, D) and labels (B,) among all."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (..., n_seen) of features (..., D)."""
        ...


class LinearHead(TaskHeads):
    """The linear classifier as a :class:`Head`."""

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Add the rows of a task."""
        self.grow(len(task.classes), device=device)

    def close(self) -> None:
        """Nothing: the next task freezes the rows."""


class Prompts(nn.Module):
    """Base of all prompts, which by itself adds none.

    Args:
        backbone: the frozen encoder.
        shares: of the energy of old tokens that updates of each of :meth:`protected` must leave alone; none: off.
        blocks: parts of a row that are projected apart, see :class:`ostinato.nn.projection.Covariance`.
        widths: of each of :meth:`protected`; none for the width of tokens.

    Attributes:
        task_layers: layers whose prefixes differ between tasks.
        registered_after: names of a method's parts that stand before its prompts. The norm of clipped gradients is
            summed in the order of the parts, which decides its last bits.
        images: training images of a task that are read for the projection.
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
        """The classifier that reads these features; a :class:`Head`."""
        return LinearHead(self.dim)

    @property
    def dim(self) -> int:
        """Width D of the features that :meth:`read` gives."""
        return self.backbone.dim

    @property
    def first(self) -> int:
        """The lowest layer that prompts change; -1 for prompts among the tokens, the depth for none."""
        return self.backbone.arch.depth

    # What prompts add

    def begin_task(self) -> None:
        """Add the prompts of a task."""

    def enter(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> tuple[Tokens, Losses]:  # noqa: ARG002 - of pools
        """States (B, N, D) that enter layer 0, and loss terms of the prompts among them.

        Args:
            x: samples.
            query: from samples to q(x), (B, D), the features of the plain backbone.
        """
        return self.backbone.embed(x), {}

    def under(self, task: int) -> Edits:  # noqa: ARG002 - of prefixes
        """Prefixes by layer under one task for all samples; -1 is the newest."""
        return {}

    def under_each(self, tasks: Tensor) -> Edits:  # noqa: ARG002 - of prefixes
        """Prefixes by layer under a task (B,) for each sample."""
        return {}

    def under_all(self) -> Edits:
        """Prefixes by layer under all tasks side by side, for states (T, B, N, D)."""
        return {}

    def read(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (..., D) of states that enter layer ``start``, with the edits of a plan where one is given."""
        return self.backbone.features(tokens, plan, start=start)

    # What old tasks keep of them

    def protected(self) -> list[Tensor]:
        """Parameters (..., D), detached, whose updates old samples must not notice."""
        return []

    def rows(self, x: Tensor) -> list[Tensor]:  # noqa: ARG002 - of those that are projected
        """For each of :meth:`protected`, the rows (n, D) that it is multiplied with for samples."""
        return []

    def step(self, task: LearnTask) -> Callable[[torch.optim.Optimizer], None]:
        """The optimiser's step, projected from the second task on where projection is on."""
        if not self.projection.on or task.index == 0:
            return plain_step
        return lambda optimizer: self.projection.step(optimizer, self.protected())

    def end_task(self, task: LearnTask) -> None:
        """Keep the directions that a task's samples use, where projection is on."""
        if self.projection.on:
            n = len(task.train)
            self.projection.collect(sampled(task.eval_batches(), n, self.images), self.rows)


class NoPromptOptions(Options, frozen=True):
    """No prompts."""

    name: Literal["none"] = "none"

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Prompts:  # noqa: ARG002 - of the others
        """The plain backbone."""
        return Prompts(backbone)
