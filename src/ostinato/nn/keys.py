"""Task keys: infer the task of a sample from its frozen feature q(x).

Every kind draws as many random numbers as a learned key, so that heads and edits start equal under all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.choices import Choice, Options, Size
from ostinato.errors import InputError
from ostinato.nn.clusters import centres
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.growing import PerTask
from ostinato.nn.matching import cosine, nearest_per_task


class TaskKeys(nn.Module):
    """Base class of task keys.

    Args:
        dim: width D of q(x).

    Attributes:
        learned: whether keys are trained by gradients; otherwise :meth:`fit` sets them before a task is trained.
        adds: whether keys are sums, to which :meth:`refine` adds more samples of known classes.
    """

    learned: ClassVar[bool] = False
    adds: ClassVar[bool] = False

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def begin(self, n_classes: int, *, device: torch.device) -> None:
        """Add the keys of a task of ``n_classes``."""
        self._add(torch.empty(self.dim, device=device).uniform_(-1, 1), n_classes)

    def _add(self, drawn: Tensor, n_classes: int) -> None:
        """Add keys, given one (D,) drawn from U(-1, 1)."""

    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """Set the newest task's keys from q(x), (n, D), and labels (n,) of all its samples."""

    def refine(self, query: Tensor, labels: Tensor) -> None:  # noqa: ARG002 - of sums alone
        """Add q(x), (n, D), and labels (n,) of more samples of known classes, if keys are sums."""
        raise InputError(f"method.keys={type(self).__name__} are no sums, to which samples can be added.")

    def pull(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:  # noqa: ARG002 - of learned ones
        """Loss terms that pull the newest key towards the frozen features of its samples.

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


class _OneKey(TaskKeys):
    """A key per task, matched by cosine."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.keys = PerTask(trains=self.learned)  # T of (D,)

    def _add(self, drawn: Tensor, n_classes: int) -> None:  # noqa: ARG002 - one key per task
        self.keys.add(drawn)

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:  # noqa: ARG002 - one key per task
        """Cosine with the key of every task."""
        return cosine(query, self.keys.stacked())


class LearnedKeys(_OneKey):
    """A key K per task, trained by the pull ``-weight cos(q(x), K)``."""

    learned = True

    def __init__(self, dim: int, pull: float) -> None:
        super().__init__(dim)
        self.weight = pull

    def pull(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The mean cosine of q(x) with the newest key, times ``-weight``."""
        return {"pull": -self.weight * cosine(query(x), self.keys[-1][None]).mean()}


class MeanKeys(_OneKey):
    """The optimum of the pull: ``argmax_K mean_b cos(q_b, K)`` is the mean of ``q_b / |q_b|``."""

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:  # noqa: ARG002 - one key per task
        """Set the mean of the normalised features."""
        self.keys[-1].copy_(F.normalize(query.double(), dim=-1).mean(0))


class ClassKeys(TaskKeys):
    """A mean of normalised features per class; a task scores as its nearest class."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.keys = PerTask(trains=False)  # T of (classes, D)

    def _add(self, drawn: Tensor, n_classes: int) -> None:
        self.keys.add(drawn.new_zeros(n_classes, self.dim))

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """Set the mean of each class."""
        query = F.normalize(query.double(), dim=-1)
        for row, c in zip(self.keys[-1], classes, strict=True):
            row.copy_(query[labels == c].mean(0))

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Cosine with the nearest class of every task."""
        return nearest_per_task(cosine(query, self.keys.joined()), sizes)


class ClusterKeys(TaskKeys):
    """Centres of k-means on normalised features per task, matched by the nearest one in L1 distance (S-Prompts).

    Args:
        dim: width D of q(x).
        clusters: k.
    """

    def __init__(self, dim: int, clusters: int) -> None:
        super().__init__(dim)
        self.clusters = clusters
        self.keys = PerTask(trains=False)  # T of (k, D)

    def _add(self, drawn: Tensor, n_classes: int) -> None:  # noqa: ARG002 - as many keys for every task
        self.keys.add(drawn.new_zeros(self.clusters, self.dim))

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:  # noqa: ARG002 - classes are not told apart
        """Set the centres."""
        self.keys[-1].copy_(centres(F.normalize(query.double(), dim=-1), self.clusters))

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Negative distance to the nearest centre of every task."""
        near = -torch.cdist(F.normalize(query.float(), dim=-1), self.keys.joined(), p=1)
        return nearest_per_task(near, [self.clusters] * len(sizes))


class GaussianKeys(TaskKeys):
    """A Gaussian of normalised features per class with a shared covariance; a task scores as its likeliest class."""

    adds = True

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.discriminant = LinearDiscriminant(dim)

    @torch.no_grad()
    def fit(self, query: Tensor, labels: Tensor, classes: range) -> None:
        """Append the classes to the discriminant."""
        self.discriminant.add(F.normalize(query.double(), dim=-1), labels, len(classes))

    def refine(self, query: Tensor, labels: Tensor) -> None:
        """Add more samples of known classes."""
        self.discriminant.add(F.normalize(query.double(), dim=-1), labels, 0)

    def match(self, query: Tensor, sizes: Sequence[int]) -> Tensor:
        """Log-likelihood in the likeliest class of every task."""
        return nearest_per_task(self.discriminant(F.normalize(query.float(), dim=-1)), sizes)


class KeyOptions(Options, frozen=True):
    """Base class of the options of task keys."""

    kind: ClassVar[type[TaskKeys]]

    def build(self, dim: int) -> TaskKeys:
        """Keys for features of width ``dim``."""
        return self.kind(dim, **self.own())


class LearnedKeyOptions(KeyOptions, frozen=True):
    """A key per task, pulled towards q(x) in training.

    Attributes:
        pull: weight of the pull (lambda).
    """

    kind = LearnedKeys
    name: Literal["learned"] = "learned"
    pull: float = 1.0


class MeanKeyOptions(KeyOptions, frozen=True):
    """The mean of q(x) / |q(x)| over a task."""

    kind = MeanKeys
    name: Literal["mean"] = "mean"


class ClassKeyOptions(KeyOptions, frozen=True):
    """The mean of q(x) / |q(x)| over each class."""

    kind = ClassKeys
    name: Literal["classes"] = "classes"


class ClusterKeyOptions(KeyOptions, frozen=True):
    """Centres of k-means on q(x) / |q(x)| over a task.

    Attributes:
        clusters: centres per task.
    """

    kind = ClusterKeys
    name: Literal["clusters"] = "clusters"
    clusters: Size = 5


class GaussianKeyOptions(KeyOptions, frozen=True):
    """A Gaussian of q(x) / |q(x)| per class."""

    kind = GaussianKeys
    name: Literal["gaussians"] = "gaussians"


LEARNED_KEYS = Choice[KeyOptions](
    LearnedKeyOptions(), MeanKeyOptions(), ClassKeyOptions(), ClusterKeyOptions(), GaussianKeyOptions()
)
"""Kinds of keys; "learned" is the default."""

MEAN_KEYS = Choice[KeyOptions](
    MeanKeyOptions(), LearnedKeyOptions(), ClassKeyOptions(), ClusterKeyOptions(), GaussianKeyOptions()
)
"""Kinds of keys; "mean" is the default."""
