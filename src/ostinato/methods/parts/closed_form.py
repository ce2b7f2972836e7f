"""Methods whose classifier follows from sums over the features of samples."""

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


class OnSums(Method):
    """Base of methods that classify by a head of sums over features, which do not change once they were added.

    Attributes:
        head: the classifier, made by the subclass.
    """

    head: SumHead

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) that the head reads."""
        return self.query(x)

    def end_task(self, task: LearnTask) -> None:
        """Add the task's training samples to the sums."""
        self.head.add(*task.extract_features(self.features), len(task.classes))

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
        """The sum of the head over all classes; None if it has none."""
        return f"its {self.head.shared}" if isinstance(self.head, SharedHead) else None

    def forget(self, task: LearnTask) -> None:
        """Subtract all samples of one class from that sum.

        Raises:
            InputError: if they are not all that were learned of the class.
        """
        features, labels = task.extract_features(self.features)
        if isinstance(self.head, SharedHead) and len(labels):
            self.head.forget(features, int(labels[0]))

    def scores(self, x: Tensor) -> Tensor:
        """Values (B, n_seen) of the head."""
        return self.head(self.features(x))


class ClosedForm(OnSums):
    """Base of methods whose only state is a head of sums over the frozen features of all samples.

    The order of classes and tasks has no influence, and two learners add (:class:`ostinato.methods.base.Additive`).

    Args:
        backbone: the frozen encoder.
        head: the classifier.
    """

    def __init__(self, backbone: Backbone, head: SumHead) -> None:
        super().__init__(backbone)
        self.head = head

    def stages(self, task: LearnTask) -> list[Stage]:  # noqa: ARG002
        """Nothing to optimise."""
        return []

    def merge(self, other: ClosedForm, labels: Tensor) -> None:
        """Add the sums of another one, see :class:`ostinato.methods.base.Additive`."""
        self.head.merge(other.head, labels)
