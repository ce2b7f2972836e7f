"""Distillation, and the old model that it reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ostinato.nn.growing import Growing


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of softened predictions, the scalar ``-mean_b sum_c p_c log q_c``, without a factor of tau^2.

    Args:
        student: logits (B, C) of q.
        teacher: logits (B, C) of p; detach them to keep gradients out of this branch.
        temperature: tau, divides both.
    """
    return F.cross_entropy(student / temperature, (teacher / temperature).softmax(-1))


class OldModel(Growing):
    """Weights of a model before the newest task; empty between tasks.

    They are one vector without gradients, and a call lends them to the modules of the model in training.
    """

    weights: Tensor
    head: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weights", "head", "bias"):
            self.register_buffer(name, torch.zeros(0))

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.bias)

    @torch.no_grad()
    def copy(self, backbone: nn.Module, weight: Tensor, bias: Tensor) -> None:
        """Copy the weights of a backbone and of a linear head, weight (C, D) and bias (C,)."""
        self.weights = torch.cat([p.flatten() for p in backbone.parameters()])
        self.head, self.bias = weight.detach().clone(), bias.detach().clone()

    def drop(self) -> None:
        """Drop the weights."""
        for name in ("weights", "head", "bias"):
            setattr(self, name, getattr(self, name).new_zeros(0))

    @torch.no_grad()
    def logits(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """Logits (B, C) in fp32 of inputs by the old weights in the modules of ``backbone``."""
        named = dict(backbone.named_parameters())
        parts = self.weights.split([p.numel() for p in named.values()])
        lent = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        features = functional_call(backbone, lent, (x,))
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(features.float(), self.head, self.bias)
