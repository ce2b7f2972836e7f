"""Methods that train nothing: a classifier of frozen features that follows from sums over samples."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask, Method, Stage


class SumHead(Protocol):
    """A classifier of features, which is a module and keeps sums."""

    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples and the next classes, from features (n, D) and labels (n,) among all classes."""
        ...

    def merge(self, other: Any, labels: Tensor) -> None:
        """Add the sums of another one, whose classes have the given numbers (C,) here."""
        ...

    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number (C,); classes of one number are joined, -1 drops a class."""
        ...

    def __call__(self, features: Tensor) -> Tensor:
        """Values (B, C) of features (B, D) for every class."""
        ...


@runtime_checkable
class SharedHead(SumHead, Protocol):
    """A head with a sum over the samples of all classes.

    Attributes:
        shared: the sum, in words.
    """

    shared: str

    def forget(self, features: Tensor, label: int) -> None:
        """Subtract a class from the shared sum, given the features (n, D) of all its samples."""
        ...


def shared_by(head: object) -> str | None:
    """Name of the sum of a head over all classes; None if there is none."""
    return f"its {head.shared}" if isinstance(head, SharedHead) else None


def forget_class(head: object, features: Tensor, labels: Tensor) -> None:
    """Subtract a class from the shared sum of a head.

    Raises:
        InputError: if the features (n, D) with equal labels (n,) are not all that were learned of the class.
    """
    if isinstance(head, SharedHead) and len(labels):
        head.forget(features, int(labels[0]))


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

    @property
    def refines(self) -> str:
        """The sums."""
        return "its sums over samples, to the same as if all had been learned at once"

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the sums."""
        self.head.add(*task.extract_features(self.features), 0)

    def relabel(self, labels: Tensor) -> None:
        """Join and drop sums of classes."""
        self.head.relabel(labels)

    @property
    def shares(self) -> str | None:
        """The sum of the head over all classes."""
        return shared_by(self.head)

    def forget(self, task: LearnTask) -> None:
        """Subtract a class from it."""
        forget_class(self.head, *task.extract_features(self.features))

    def scores(self, x: Tensor) -> Tensor:
        """Values (B, n_seen) of the head."""
        return self.head(self.features(x))
