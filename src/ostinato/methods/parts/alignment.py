"""Classifier alignment: fit the head of all classes seen again, from statistics of their features.

``gaussians`` trains it on draws from class Gaussians: Zhang, Wang, Kang, Chen, Wei: "SLCA: Slow Learner with Classifier
Alignment for Continual Learning on a Pre-trained Model", ICCV 2023, https://arxiv.org/abs/2303.05118. As in LiEPrompt
and CAPrompt, the loss is plain cross-entropy without logit normalisation, on new draws in every epoch.

``discriminant`` solves for the head instead: the optimum for Gaussians with one covariance is linear discriminant
analysis (``nn/discriminant.py``), without steps, rates or draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ostinato.choices import Options, Size
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage
from ostinato.nn import TaskHeads
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.gaussians import ClassGaussians

Features = Callable[[Tensor], Tensor]
"""From samples to features (B, D)."""


class Alignment(nn.Module):
    """Base class of alignments; aligns nothing itself.

    Attributes:
        aligns: whether the rows of earlier tasks change.
    """

    aligns: ClassVar[bool] = False

    def stages(self, task: LearnTask, head: nn.Module, features: Features) -> list[Stage]:  # noqa: ARG002 - of training
        """Stages that train the head, after those of the task.

        Args:
            task: newest task.
            head: classifier of all classes seen.
            features: computes the features that the head reads.
        """
        return []

    def end_task(self, task: LearnTask, head: TaskHeads, features: Features) -> None:
        """Collect the statistics that no stage has collected, and solve for the head if it is not trained."""


class GaussianAlignment(Alignment):
    """Class Gaussians, and the stage that trains a head on draws from them after each task from the second on.

    Args:
        dim: width D of the features.
        options: of the alignment.
        ridge: added to the diagonal of covariances.
    """

    aligns = True

    def __init__(self, dim: int, options: GaussianOptions, *, ridge: float) -> None:
        super().__init__()
        self.gaussians = ClassGaussians(dim, covariance=options.covariance, ridge=ridge)
        self.recipe = Recipe(
            epochs=options.epochs, batch_size=options.samples, lr=options.lr, optimizer="sgd", momentum=0.9,
            weight_decay=options.weight_decay, schedule=options.schedule,
        )  # fmt: skip

    def collect(self, task: LearnTask, features: Features) -> None:
        """Add the Gaussians of a task's classes."""
        self.gaussians.add(*task.extract_features(features), len(task.classes))

    def stages(self, task: LearnTask, head: nn.Module, features: Features) -> list[Stage]:
        """The stage that trains ``head`` alone; ``train.*`` does not change its recipe."""
        if task.index == 0:
            return []

        def loss(x: Tensor, y: Tensor) -> Losses:  # noqa: ARG001 - a draw depends on the label alone
            return {"align": F.cross_entropy(head(self.gaussians.sample(y)), y)}

        stage = Stage(
            loss,
            name="align",
            data=Labels(task.classes.stop, self.recipe.batch_size),
            recipe=self.recipe,
            params=list(head.parameters()),
            prepare=lambda: self.collect(task, features),
        )
        return [stage]

    def end_task(self, task: LearnTask, head: TaskHeads, features: Features) -> None:  # noqa: ARG002 - it is trained
        """Collect the Gaussians of the first task, which has no alignment stage."""
        if task.index == 0:
            self.collect(task, features)


class DiscriminantAlignment(Alignment):
    """A linear discriminant, whose weights become those of the head after each task.

    Rows are centred over the classes, which changes no difference between logits.

    Args:
        dim: width D of the features.
    """

    aligns = True

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.discriminant = LinearDiscriminant(dim)

    @torch.no_grad()
    def end_task(self, task: LearnTask, head: TaskHeads, features: Features) -> None:
        """Add the task's features to the sums, and set all rows of the head."""
        self.discriminant.add(*task.extract_features(features), len(task.classes))
        weight, bias = self.discriminant.weight, self.discriminant.bias
        head.set_rows(weight - weight.mean(0), bias - bias.mean())


class AlignmentOptions(Options, frozen=True):
    """Base class of the options of an alignment."""

    def build(self, dim: int, *, ridge: float = 1e-4) -> Alignment:
        """Make the alignment.

        Args:
            dim: width D of the features.
            ridge: added to the diagonal of the covariance of each class.
        """
        raise NotImplementedError


class GaussianOptions(AlignmentOptions, frozen=True):
    """Training on draws from class Gaussians.

    Attributes:
        epochs: passes over the draws.
        lr: initial learning rate (SGD, momentum 0.9).
        schedule: half a cosine to 0, per step or per epoch.
        samples: draws per class and epoch, and samples per step; an epoch has one step per class.
        weight_decay: L2 of the head.
        covariance: of the Gaussians: "full" or "diagonal" per class; "shared" is halfway to the mean of the task.
    """

    name: Literal["gaussians"] = "gaussians"
    epochs: Size = 30
    lr: Annotated[float, Field(gt=0)] = 0.005
    samples: Size = 120
    schedule: Literal["cosine", "cosine_per_epoch"] = "cosine"
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    covariance: Literal["full", "shared", "diagonal"] = "full"

    def build(self, dim: int, *, ridge: float = 1e-4) -> GaussianAlignment:
        """Make the alignment."""
        return GaussianAlignment(dim, self, ridge=ridge)


class DiscriminantOptions(AlignmentOptions, frozen=True):
    """Linear discriminant analysis in place of training."""

    name: Literal["discriminant"] = "discriminant"

    def build(self, dim: int, *, ridge: float = 1e-4) -> DiscriminantAlignment:  # noqa: ARG002 - it shrinks by itself
        """Make the alignment."""
        return DiscriminantAlignment(dim)


class NoAlignmentOptions(AlignmentOptions, frozen=True):
    """No alignment."""

    name: Literal["none"] = "none"

    def build(self, dim: int, *, ridge: float = 1e-4) -> Alignment:  # noqa: ARG002 - it keeps no statistics
        """Make no alignment."""
        return Alignment()


class Labels(Dataset[tuple[Tensor, int]]):
    """``per_class`` labels of each class; the loss draws their features."""

    def __init__(self, n_classes: int, per_class: int) -> None:
        self.n_classes, self.per_class = n_classes, per_class

    def __len__(self) -> int:
        return self.n_classes * self.per_class

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        label = key[0] // self.per_class
        return torch.tensor(label), label
