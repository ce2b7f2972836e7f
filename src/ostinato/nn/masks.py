"""Multiplicative weight masks: initialisation, and binary masks of the largest scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

INITS = ("ones", "uniform", "xavier", "kaiming", "normal")


def initial_mask(out: int, into: int, kind: str, *, device: torch.device) -> Tensor:
    """The initial value of a mask (out, in).

    Args:
        out: rows of the weight.
        into: columns of the weight.
        kind: "ones" is exactly 1; "uniform" is U(0.99, 1); "xavier", "kaiming" (a = sqrt 5) and "normal" (std
            0.01) are near 0, so the masked map starts almost switched off. As in Soft-TransFormers' ablation, which
            draws a tensor of one mask per task, the fan-in is out * in.
        device: of the mask.
    """
    mask = torch.ones(1, out, into, device=device)
    if kind == "uniform":
        mask.uniform_(0.99, 1)
    elif kind == "xavier":
        nn.init.xavier_uniform_(mask)
    elif kind == "kaiming":
        nn.init.kaiming_uniform_(mask, a=math.sqrt(5))
    elif kind == "normal":
        mask.normal_(0, 0.01)
    return mask[0]


def initial_scores(out: int, into: int, *, device: torch.device) -> Tensor:
    """Initial scores (out, in) of the entries of a weight: Kaiming uniform with a = sqrt 5."""
    return nn.init.kaiming_uniform_(torch.empty(out, into, device=device), a=math.sqrt(5))


class _Keep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, keep: float) -> Tensor:
        ctx.save_for_backward(scores)
        magnitude = scores.abs()
        k = 1 + round((1 - keep) * (magnitude.numel() - 1))
        return (magnitude >= magnitude.flatten().kthvalue(k).values).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (scores,) = ctx.saved_tensors
        return grads[0] * scores.sign(), None


def keep_largest(scores: Tensor, keep: float) -> Tensor:
    """A binary mask of the largest scores by magnitude, with a straight-through gradient.

    Every score, kept or not, receives the gradient of its mask entry times its sign.

    Args:
        scores: (out, in).
        keep: share of entries kept, in (0, 1]; the threshold is entry 1 + round((1 - keep)(n - 1)) of the
            sorted magnitudes.

    Returns:
        (out, in) of zeros and ones.
    """
    return _Keep.apply(scores, keep)  # pyright: ignore[reportReturnType]
