"""Classifier alignment: train the head of all classes seen again on features drawn from class Gaussians.

Zhang, Wang, Kang, Chen, Wei: "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a Pre-trained
Model", ICCV 2023, https://arxiv.org/abs/2303.05118. As in LiEPrompt and CAPrompt, the loss is plain cross-entropy
without logit normalisation, on new draws in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ostinato.choices import Options, Size
from ostinato.methods.base import Losses, Recipe, Stage
from ostinato.nn.gaussians import ClassGaussians


class AlignmentOptions(Options, frozen=True):
    """Options of the alignment on class Gaussians.

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


class NoAlignmentOptions(Options, frozen=True):
    """No alignment."""

    name: Literal["none"] = "none"


class Labels(Dataset[tuple[Tensor, int]]):
    """``per_class`` labels of each class; the loss draws their features."""

    def __init__(self, n_classes: int, per_class: int) -> None:
        self.n_classes, self.per_class = n_classes, per_class

    def __len__(self) -> int:
        return self.n_classes * self.per_class

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        label = key[0] // self.per_class
        return torch.tensor(label), label


class Alignment(nn.Module):
    """Class Gaussians, and the stage that trains a head on draws from them.

    Args:
        dim: width D of the features.
        options: of the alignment.
        ridge: added to the diagonal of covariances.
    """

    def __init__(self, dim: int, options: AlignmentOptions, *, ridge: float = 1e-4) -> None:
        super().__init__()
        self.gaussians = ClassGaussians(dim, covariance=options.covariance, ridge=ridge)
        self.recipe = Recipe(
            epochs=options.epochs, batch_size=options.samples, lr=options.lr, optimizer="sgd", momentum=0.9,
            weight_decay=options.weight_decay, schedule=options.schedule,
        )  # fmt: skip

    def stage(self, head: nn.Module, n_classes: int, *, prepare: Callable[[], None]) -> Stage:
        """The stage that trains ``head`` alone; ``train.*`` does not change its recipe.

        Args:
            head: from features (B, D) to logits (B, ``n_classes``).
            n_classes: number of classes seen.
            prepare: adds missing Gaussians before the first step.
        """

        def loss(x: Tensor, y: Tensor) -> Losses:  # noqa: ARG001 - a draw depends on the label alone
            return {"align": F.cross_entropy(head(self.gaussians.sample(y)), y)}

        return Stage(
            loss,
            name="align",
            data=Labels(n_classes, self.recipe.batch_size),
            recipe=self.recipe,
            params=list(head.parameters()),
            prepare=prepare,
        )
