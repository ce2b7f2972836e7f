"""SimpleCIL: nearest class mean on frozen features.

Zhou, Cai, Ye, Zhan, Liu: "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
Adaptivity are All You Need", IJCV 2024, https://arxiv.org/abs/2303.07338.

Nothing is trained. The prototype of a class is the mean frozen feature of its training images; an image gets the class
of the prototype with the largest cosine.

Differences from the paper: pixels are normalised as the weights expect (the official code feeds [0, 1] pixels;
``preprocess=unit`` restores that). The order of classes and tasks has no influence.
"""

from __future__ import annotations

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask, Method, Stage
from ostinato.nn import ClassMeans, cosine
from ostinato.registry import register


@register("simplecil")
class SimpleCIL(Method):
    """Nearest class mean by cosine."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.class_means = ClassMeans(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's class means."""
        super().begin_task(task)
        self.class_means.grow(len(task.classes))

    def stages(self, task: LearnTask) -> list[Stage]:  # noqa: ARG002
        """No stage."""
        return []

    def end_task(self, task: LearnTask) -> None:
        """Average the features of the task's training images."""
        self.class_means.update(*task.extract_features(self.query))

    def merge(self, other: SimpleCIL, labels: Tensor) -> None:
        """Add the sums of another one, see :class:`ostinato.methods.base.Additive`."""
        self.class_means.merge(other.class_means, labels)

    @property
    def refines(self) -> str:
        """The class means."""
        return "its class means, to the same as if all had been learned at once"

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the means."""
        self.class_means.update(*task.extract_features(self.query))

    def relabel(self, labels: Tensor) -> None:
        """Join and drop class means."""
        self.class_means.relabel(labels)

    def scores(self, x: Tensor) -> Tensor:
        """Cosine (B, n_seen) with every class mean."""
        return cosine(self.query(x), self.class_means.means())
