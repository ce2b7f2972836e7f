"""Terms of the plain encoder, which are added to the scores of a method with edits.

What a method learns changes features that the pre-trained encoder already separates. A linear discriminant of the plain
features (``nn/discriminant.py``) is exact over all tasks and forgets nothing. Its log-likelihoods, scaled, are added to
the scores of the method: a product of two experts, of which one is trained. The idea is this project's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from ostinato.choices import Choice, Options
from ostinato.methods.base import LearnTask
from ostinato.nn.discriminant import LinearDiscriminant

Query = Callable[[Tensor], Tensor]
"""From samples to the features q(x), (B, D), of the plain backbone."""


class FrozenTerm(nn.Module):
    """Base class of terms; adds none itself."""

    def end_task(self, task: LearnTask, query: Query) -> None:
        """Collect statistics of a task's samples."""

    def refine(self, task: LearnTask, query: Query) -> None:
        """Add more samples of known classes to the statistics."""

    def add(self, scores: Tensor, x: Tensor, query: Query) -> Tensor:  # noqa: ARG002 - of terms that read samples
        """Scores (B, n_seen) of samples x with the term."""
        return scores


class DiscriminantTerm(FrozenTerm):
    """Log-likelihoods of q(x) under a linear discriminant, times a weight.

    Args:
        dim: width D of q(x).
        weight: factor on the log-likelihoods.
    """

    def __init__(self, dim: int, weight: float) -> None:
        super().__init__()
        self.discriminant, self.weight = LinearDiscriminant(dim), weight

    def end_task(self, task: LearnTask, query: Query) -> None:
        """Add the task's samples to the sums."""
        self.discriminant.add(*task.extract_features(query), len(task.classes))

    def refine(self, task: LearnTask, query: Query) -> None:
        """Add more samples of known classes to the sums."""
        self.discriminant.add(*task.extract_features(query), 0)

    def add(self, scores: Tensor, x: Tensor, query: Query) -> Tensor:
        """Scores plus the weighted log-likelihoods, up to a constant per sample."""
        return scores + self.weight * self.discriminant(query(x))


class TermOptions(Options, frozen=True):
    """Base class of the options of a term."""

    def build(self, dim: int) -> FrozenTerm:
        """Make the term for features q(x) of width ``dim``."""
        raise NotImplementedError


class NoTermOptions(TermOptions, frozen=True):
    """No term: the scores of the method alone."""

    name: Literal["none"] = "none"

    def build(self, dim: int) -> FrozenTerm:  # noqa: ARG002 - it has no state
        """Make no term."""
        return FrozenTerm()


class DiscriminantTermOptions(TermOptions, frozen=True):
    """The linear discriminant of plain features.

    Attributes:
        weight: factor on its log-likelihoods.
    """

    name: Literal["discriminant"] = "discriminant"
    weight: Annotated[float, Field(gt=0)] = 1.0

    def build(self, dim: int) -> DiscriminantTerm:
        """Make the term."""
        return DiscriminantTerm(dim, self.weight)


def term_choice(weight: float) -> Choice[TermOptions]:
    """Terms to choose from, "none" by default, with a default weight in the units of a method's scores."""
    return Choice(NoTermOptions(), DiscriminantTermOptions(weight=weight))
