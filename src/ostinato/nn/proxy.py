"""Temporary cosine classifier of one task."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.nn.growing import resize_parameters
from ostinato.nn.matching import cosine


class CosineProxy(nn.Module):
    """Cosine classifier of the newest task with a learned scale: ``z_j = sigma cos(f, w_j)``, in fp32.

    Args:
        dim: width D of the features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.weight = nn.Parameter(torch.zeros(0, dim))
        self.scale = nn.Parameter(torch.ones(()))
        self.register_load_state_dict_pre_hook(resize_parameters)

    def reset(self, n_classes: int) -> None:
        """Start over with ``n_classes``: rows from U(-1, 1) / sqrt(D), scale 1."""
        bound = self.dim**-0.5
        self.weight = nn.Parameter(self.weight.new_empty(n_classes, self.dim).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.ones_like(self.scale))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes of the task) of features (B, D)."""
        return self.scale * cosine(features, self.weight)
