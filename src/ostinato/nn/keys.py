"""Keys by which the task of a sample is found from its frozen feature q(x).

Every kind draws from the generator as much as a learned key takes, so that heads and edits begin alike whichever finds
the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.choices import Choice, Options
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.growing import PerTask
from ostinato.nn.matching import cosine, nearest_per_task


class TaskKeys(nn.Module):
    """Base of all kinds.

    Args:
        dim: width D of q(x).

    Attributes:
        learned: whether gradients move the keys; otherwise :meth:`fit` sets them before a task is trained.
    """

    learned: ClassVar[bool] = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def begin(self, n_classes: int, *, device: torch.device) -> None:
        """Make room for a task of ``n_classes``."""
        self._add(torch.empty(self.dim, device=device).uniform_(-1, 1), n_classes)

    def _add(self, drawn: Tensor, n_classes: int) -> None:
        """Make room, given a key (D,) drawn from U(-1, 1)."""

    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """Set the newest task's keys from q(x), (n, D), and labels (n,) of all its samples."""

    def pull(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:  # noqa: ARG002 - of learned ones
        """Loss terms that move the newest key towards the frozen features of its samples.

        Args:
            x: samples of the newest task.
            query: from samples to q(x), (B, D).
        """
        return {}

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Evidence (B, T) of q(x), (B, D), for every task.

        Args:
            query: (B, D).
            sizes: classes of each of the T tasks.
        """
        raise NotImplementedError


class LearnedKeys(TaskKeys):
    """A key per task that the pull ``-weight cos(q(x), K)`` trains; the largest cosine wins."""

    learned = True

    def __init__(self, dim: int, weight: float) -> None:
        super().__init__(dim)
        self.weight = weight
        self.keys = PerTask()  # T of (D,)

    def _add(self, drawn: Tensor, n_classes: int) -> None:  # noqa: ARG002 - one for the task
        self.keys.add(drawn)

    def pull(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean cosine of q(x) with the newest key, times the negative weight."""
        return {"pull": -self.weight * cosine(query(x), self.keys[-1][None]).mean()}

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:  # noqa: ARG002 - one key a task
        """Cosine with the key of every task."""
        return cosine(query, self.keys.stacked())


class MeanKeys(TaskKeys):
    """The key that the pull would find: ``argmax_K mean_b cos(q_b, K)`` is the mean of ``q_b / |q_b|``."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.keys = PerTask(trains=False)  # T of (D,)

    def _add(self, drawn: Tensor, n_classes: int) -> None:  # noqa: ARG002 - one for the task
        self.keys.add(drawn)

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:  # noqa: ARG002 - one for the task
        """The mean of the normalised features."""
        self.keys[-1].copy_(F.normalize(query.double(), dim=-1).mean(0))

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:  # noqa: ARG002 - one key a task
        """Cosine with the key of every task."""
        return cosine(query, self.keys.stacked())


class ClassKeys(TaskKeys):
    """A mean of normalised features for every class; a task counts with its nearest class."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.keys = PerTask(trains=False)  # T of (classes, D)

    def _add(self, drawn: Tensor, n_classes: int) -> None:
        self.keys.add(drawn.new_zeros(n_classes, self.dim))

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """The mean of each class."""
        query = F.normalize(query.double(), dim=-1)
        for row, c in zip(self.keys[-1], classes, strict=True):
            row.copy_(query[labels == c].mean(0))

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Cosine with the nearest class of every task."""
        return nearest_per_task(cosine(query, self.keys.joined()), sizes)


class GaussianKeys(TaskKeys):
    """A Gaussian of normalised features for every class, with one covariance; a task counts with its likeliest."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.discriminant = LinearDiscriminant(dim)

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """Append the classes to the discriminant."""
        self.discriminant.add(F.normalize(query.double(), dim=-1), labels, len(classes))

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Log-likelihood in the likeliest class of every task."""
        return nearest_per_task(self.discriminant(F.normalize(query.float(), dim=-1)), sizes)


class LearnedKeyOptions(Options, frozen=True):
    """A key per task that training pulls towards q(x).

    Attributes:
        pull: weight of the pull (lambda).
    """

    name: Literal["learned"] = "learned"
    pull: float = 1.0

    def build(self, dim: int) -> TaskKeys:
        """The keys of tasks for features of width ``dim``."""
        return LearnedKeys(dim, self.pull)


class MeanKeyOptions(Options, frozen=True):
    """The mean of q(x) / |q(x)| over a task."""

    name: Literal["mean"] = "mean"

    def build(self, dim: int) -> TaskKeys:
        """The keys of tasks for features of width ``dim``."""
        return MeanKeys(dim)


class ClassKeyOptions(Options, frozen=True):
    """The mean of q(x) / |q(x)| over each class."""

    name: Literal["classes"] = "classes"

    def build(self, dim: int) -> TaskKeys:
        """The keys of tasks for features of width ``dim``."""
        return ClassKeys(dim)


class GaussianKeyOptions(Options, frozen=True):
    """A Gaussian of q(x) / |q(x)| for each class."""

    name: Literal["gaussians"] = "gaussians"

    def build(self, dim: int) -> TaskKeys:
        """The keys of tasks for features of width ``dim``."""
        return GaussianKeys(dim)


LEARNED_KEYS = Choice(LearnedKeyOptions(), MeanKeyOptions(), ClassKeyOptions(), GaussianKeyOptions())
"""Kinds of keys; learned ones where nothing is said."""

MEAN_KEYS = Choice(MeanKeyOptions(), LearnedKeyOptions(), ClassKeyOptions(), GaussianKeyOptions())
"""Kinds of keys; means where nothing is said."""
