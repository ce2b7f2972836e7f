"""Methods that train nothing: a classifier of frozen features that follows from sums over samples."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask, Method, Stage


class SumHead(Protocol):
    """A classifier of features, which is a module and keeps sums."""

    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Append the next classes, from features (n, D) and labels (n,) among all classes."""
        ...

    def merge(self, other: Any, labels: Tensor) -> None:
        """Add the sums of another one, whose classes have the given numbers (C,) here."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Values (B, C) of features (B, D) for every class."""
        ...


class ClosedForm(Method):
    """Base of methods whose only state is a head of sums over the frozen features of all samples.

    The order of classes and tasks has no influence, and two learners add (:class:`ostinato.methods.base.Additive`).

    Args:
        backbone: the frozen encoder.
        head: the classifier.
    """

    head: SumHead

    def __init__(self, backbone: Backbone, head: SumHead) -> None:
        super().__init__(backbone)
        self.head = head

    def stages(self, task: LearnTask) -> list[Stage]:  # noqa: ARG002
        """Nothing to optimise."""
        return []

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) that the head reads."""
        return self.query(x)

    def end_task(self, task: LearnTask) -> None:
        """Add the task's training samples to the sums."""
        self.head.add(*task.extract_features(self.features), len(task.classes))

    def merge(self, other: ClosedForm, labels: Tensor) -> None:
        """Add the sums of another one, see :class:`ostinato.methods.base.Additive`."""
        self.head.merge(other.head, labels)

    def scores(self, x: Tensor) -> Tensor:
        """Values (B, n_seen) of the head."""
        return self.head(self.features(x))
