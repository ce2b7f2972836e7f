"""Optimiser and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from ostinato.methods.base import Recipe

_FACTOR = "lr_factor"
"""Key of a parameter group: factor on the recipe's learning rate."""


def make_optimizer(
    recipe: Recipe, params: Sequence[nn.Parameter], backbone: Collection[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Make the recipe's optimiser.

    Args:
        recipe: the recipe.
        params: parameters to train.
        backbone: weights of the backbone; those in ``params`` form the last group, with a rate scaled by
            ``backbone_lr_factor``.
    """
    groups = _groups(recipe, params, backbone)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, recipe.lr, weight_decay=recipe.weight_decay)


def _groups(recipe: Recipe, params: Sequence[nn.Parameter], backbone: Collection[nn.Parameter]) -> list[dict[str, Any]]:
    """Group parameters by the factor on their rate; one group if the rates are equal."""
    factor = recipe.backbone_lr_factor
    slow = {id(p) for p in backbone} if factor != 1 else set()
    parts = ([p for p in params if id(p) not in slow], 1.0), ([p for p in params if id(p) in slow], factor)
    return [{"params": part, "lr": recipe.lr * f, _FACTOR: f} for part, f in parts if part]


def lr_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Factor in [0, 1] on the learning rate at step s, from 0, of S steps; without state.

    Cosine (1 + cos(pi s / S)) / 2, per epoch with s the first step of its epoch; quarter cosine cos(pi s / 2S);
    multistep 0.1 to the number of milestones passed. ``steps`` is a multiple of the recipe's epochs.
    """
    progress = step / max(steps, 1)
    if recipe.schedule == "cosine_per_epoch":
        epoch = step * recipe.epochs // max(steps, 1)
        return (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "quarter_cosine":
        return math.cos(math.pi / 2 * progress)
    if recipe.schedule == "multistep":
        return 0.1 ** sum(progress >= m for m in recipe.milestones)
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups, times the factor of each group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_FACTOR]
