"""A classifier that exists only while its task is learned, and distillation through it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.nn.growing import resize_parameters
from ostinato.nn.matching import cosine


class CosineProxy(nn.Module):
    """Cosine classifier of one task with a learned scale: ``z_j = sigma cos(f, w_j)``, in fp32.

    A new task replaces it, so it is never larger than one task; a state of any size can be loaded.

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
        """Replace it by a classifier of ``n_classes``: rows from U(-1, 1) / sqrt(D), scale 1."""
        bound = self.dim**-0.5
        self.weight = nn.Parameter(self.weight.new_empty(n_classes, self.dim).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.ones_like(self.scale))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, classes of the task) of features (B, D)."""
        return self.scale * cosine(features, self.weight)


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between softened predictions, ``-mean_b sum_c p_c log q_c``, without a factor of tau^2.

    Args:
        student: logits (B, C) of q.
        teacher: logits (B, C) of p; detach them to keep gradients out of this branch.
        temperature: tau, divides both.

    Returns:
        A scalar.
    """
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(-1))
