"""Optimiser and learning rate schedule of a recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ostinato.methods.base import Recipe


def make_optimizer(recipe: Recipe, params: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The recipe's optimiser over ``params``."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(params, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(params, recipe.lr, weight_decay=recipe.weight_decay)


def lr_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Factor in [0, 1] on the learning rate at step s, from 0, of S steps; without state.

    Cosine (1 + cos(pi s / S)) / 2, quarter cosine cos(pi s / 2S), multistep 0.1 to the number of milestones passed.
    """
    progress = step / max(steps, 1)
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if recipe.schedule == "quarter_cosine":
        return math.cos(math.pi / 2 * progress)
    if recipe.schedule == "multistep":
        return 0.1 ** sum(progress >= m for m in recipe.milestones)
    return 1.0


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
