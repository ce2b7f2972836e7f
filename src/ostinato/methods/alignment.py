"""Classifier alignment: the head of all classes seen is trained again on features drawn from class Gaussians.

Zhang, Wang, Kang, Chen, Wei: "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
Pre-trained Model", ICCV 2023, https://arxiv.org/abs/2303.05118. Here as LiEPrompt and CAPrompt use it: plain
cross-entropy over all classes seen, without logit normalisation, fresh draws in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.nn.gaussians import ClassGaussians

RECIPE = Recipe(
    epochs=30, batch_size=120, lr=0.005, optimizer="sgd", momentum=0.9, weight_decay=5e-4, schedule="cosine"
)


class Labels(Dataset[tuple[Tensor, int]]):
    """``per_class`` labels of each class; the features are drawn in batches by the loss."""

    def __init__(self, n_classes: int, per_class: int) -> None:
        self.n_classes, self.per_class = n_classes, per_class

    def __len__(self) -> int:
        return self.n_classes * self.per_class

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        label = key[0] // self.per_class
        return torch.tensor(label), label


def alignment_stage(
    head: nn.Module,
    gaussians: ClassGaussians,
    n_classes: int,
    *,
    recipe: Recipe = RECIPE,
    per_class: int = 120,
    prepare: Callable[[], None] | None = None,
) -> Stage:
    """The stage that trains ``head`` alone on drawn features.

    With as many samples per batch as draws per class, an epoch has as many steps as there are classes.

    Args:
        head: (B, D) to logits (B, ``n_classes``).
        gaussians: of all classes seen; filled by ``prepare`` at the latest.
        n_classes: classes seen.
        recipe: of the alignment; the ``train.*`` options belong to the main stage.
        per_class: draws per class and epoch.
        prepare: runs once before the first step, usually collects the newest classes' statistics.
    """

    def loss(x: Tensor, y: Tensor) -> Losses:  # noqa: ARG001 - what is drawn depends on the label alone
        return {"align": F.cross_entropy(head(gaussians.sample(y)), y)}

    return Stage(
        loss,
        name="align",
        data=Labels(n_classes, per_class),
        recipe=recipe,
        params=list(head.parameters()),
        prepare=prepare,
    )


def collect(method: Method, task: LearnTask, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """:meth:`LearnTask.each` with the method in evaluation mode, so that frozen features are looked up."""
    training = method.training
    method.eval()
    rows, labels = task.each(features)
    method.train(training)
    return rows, labels
