"""Memory of exemplars with a budget, in total or per class, filled by herding, at random or as a reservoir."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ostinato.backbones import Backbone
from ostinato.choices import Choice, Options, Size
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.nn.exemplars import Exemplars, first_of_each_class, herding
from ostinato.streams.base import Samples


class HerdingOptions(Options, frozen=True):
    """Samples of every class whose mean feature is nearest to that of the class (iCaRL).

    Attributes:
        size: number of samples.
        per: "all" shares the size equally among the classes seen, "class" keeps as many of each class.
    """

    name: Literal["herding"] = "herding"
    size: Size = 2000
    per: Literal["all", "class"] = "all"


class RandomOptions(Options, frozen=True):
    """Random samples, equally many of every class.

    Attributes:
        size: number of samples.
        per: "all" shares the size equally among the classes seen, "class" keeps as many of each class.
    """

    name: Literal["random"] = "random"
    size: Size = 2000
    per: Literal["all", "class"] = "all"


class ReservoirOptions(Options, frozen=True):
    """A random sample of all samples seen, whatever their classes (Vitter, 1985).

    Attributes:
        size: number of samples.
    """

    name: Literal["reservoir"] = "reservoir"
    size: Size = 2000


MemoryOptions = HerdingOptions | RandomOptions | ReservoirOptions

CLASS_MEMORY = Choice(HerdingOptions(), RandomOptions())
"""Memories that hold samples of every class."""

MEMORY = Choice(ReservoirOptions(), RandomOptions(), HerdingOptions())
"""All memories."""


class Memory(Exemplars):
    """Exemplars within a budget.

    The samples of a class stand in the order of their choice, so that a smaller share keeps the first.

    Args:
        backbone: its kind decides between images and texts.
        options: choice and budget.
    """

    seen: Tensor

    def __init__(self, backbone: Backbone, options: MemoryOptions) -> None:
        super().__init__(backbone)
        self.options = options
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))  # samples offered to the reservoir

    def share(self, n_classes: int) -> int:
        """Samples of each of ``n_classes``.

        Raises:
            InputError: if the budget is below one per class.
        """
        options = self.options
        if not isinstance(options, ReservoirOptions) and options.per == "class":
            return options.size
        if options.size < n_classes:
            raise InputError(
                f"method.memory.size must be at least the number of classes seen, {n_classes} now, got {options.size}. "
                "Raise it, or set method.memory.per=class."
            )
        return options.size // n_classes

    def update(
        self,
        task: LearnTask,
        features: Callable[[Tensor], Tensor],
        *,
        n: int | None = None,
        without: Tensor | None = None,
    ) -> Tensor:
        """Add samples of a task, and drop earlier ones beyond the budget.

        Args:
            task: the newest task.
            features: from inputs (B, ...) to (B, D), for herding.
            n: samples of each class; None for :meth:`share`.
            without: positions of the task's samples that must not be chosen.

        Returns:
            (m,) positions, before the call, of the samples that stay; they come first, in this order.
        """
        if isinstance(self.options, ReservoirOptions):
            stay, new = self._reservoir(len(task.train))
            self.keep(stay)
        else:
            n = self.share(task.classes.stop) if n is None else n
            stay, new = self.trim(n), self._of_each_class(task, features, n, without)
        self.store(task, new)
        return stay

    def trim(self, n: int) -> Tensor:
        """Keep the first ``n`` samples of every class, and return their positions before."""
        stay = first_of_each_class(self.y, n)
        self.keep(stay)
        return stay

    def store(self, task: LearnTask, rows: Tensor) -> None:
        """Add the training samples of a task at positions (n,), under the test transform."""
        for x, y in task.eval_batches(rows.tolist()) if len(rows) else ():
            self.add(x, y, task.index)

    def _of_each_class(
        self, task: LearnTask, features: Callable[[Tensor], Tensor], n: int, without: Tensor | None
    ) -> Tensor:
        herds = isinstance(self.options, HerdingOptions)
        found, labels = task.extract_features(features if herds else no_features)
        free = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        if without is not None:
            free[without] = False
        rows = free.nonzero()[:, 0]
        if not herds:
            return rows[random_of_each_class(labels[rows], n)]
        groups = (rows[labels[rows] == c] for c in task.classes)
        return torch.cat([group[herding(found[group], n)] for group in groups])

    def _reservoir(self, n: int) -> tuple[Tensor, Tensor]:
        """Positions of samples that stay, and of the ``n`` new ones that enter; every order of the new is as likely."""
        old, size, seen = len(self), self.options.size, int(self.seen)
        slots = list(range(old))
        order = (old + torch.randperm(n)).tolist()
        draws = torch.rand(n, dtype=torch.float64).tolist()
        for i, (row, draw) in enumerate(zip(order, draws, strict=True)):
            if len(slots) < size:
                slots.append(row)
            elif (place := int(draw * (seen + i + 1))) < size:
                slots[place] = row
        self.seen += n
        kept = torch.tensor(slots, dtype=torch.int64, device=self.y.device)
        return kept[kept < old], kept[kept >= old] - old

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        """Inputs (n, ...) and labels (n,) drawn with replacement."""
        rows = self.draw(n)
        return self.at(rows), self.y[rows]

    def count_beside(self, batch: int, n: int) -> int:
        """Samples beside ``batch`` of a task's ``n`` samples, in proportion to the memory, and at least 1."""
        return max(1, round(batch * len(self) / n))


def no_features(x: Tensor) -> Tensor:
    """Features (B, 0) of inputs, for a pass over their labels alone."""
    return x.new_zeros(len(x), 0)


def random_of_each_class(labels: Tensor, n: int) -> Tensor:
    """Positions of ``n`` random samples of every class among labels (m,), in a random order."""
    order = torch.randperm(len(labels)).to(labels.device)
    return order[first_of_each_class(labels[order], n)]


class Subset(Dataset[tuple[Tensor, int]]):
    """Samples at some positions of a task's training data, with new augmentations in every epoch.

    Args:
        samples: of the task.
        rows: positions.
    """

    def __init__(self, samples: Samples, rows: Sequence[int]) -> None:
        self.samples, self.rows = samples, rows
        self.collate: Callable[[list[Any]], Any] = getattr(samples, "collate", default_collate)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        return self.samples[self.rows[key[0]], key[1]]


class Positions(Dataset[tuple[Tensor, int]]):
    """Positions in a memory with their labels; the loss reads the samples there.

    Args:
        memory: samples with labels.
        rows: positions (n,); None for all.
    """

    def __init__(self, memory: Exemplars, rows: Tensor | None = None) -> None:
        self.rows: list[int] = list(range(len(memory))) if rows is None else rows.tolist()
        self.labels: list[int] = memory.y.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        row = self.rows[key[0]]
        return torch.tensor(row), self.labels[row]
