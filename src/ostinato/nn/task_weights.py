"""Soft task weights from class scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.nn.matching import nearest_per_task


def weights_by_probability(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Task weights proportional to the mean probability of each task's classes, under a softmax over all classes.

    The mean, unlike the sum, gives tasks with many classes no advantage: equal logits give equal weights.

    Args:
        logits: (B, C), classes in the order of their tasks.
        sizes: classes of each of the T tasks; they sum to C.

    Returns:
        (B, T), not negative, rows sum to 1.
    """
    rows = torch.eye(len(sizes)) / torch.tensor(list(sizes))
    # (C, T): weight of a class in the mean of its task.
    share = torch.cat([row.expand(n, -1) for row, n in zip(rows, sizes, strict=True)])
    means = logits.softmax(1) @ share.to(logits)
    return means / means.sum(1, keepdim=True)


def weights_by_similarity(similarity: Tensor, sizes: Sequence[int], temperature: float) -> Tensor:
    """Softmax over tasks of the similarity to the nearest class of each.

    Args:
        similarity: (B, C), classes in the order of their tasks.
        sizes: classes of each of the T tasks; they sum to C.
        temperature: divides the similarities; small values choose one task.

    Returns:
        (B, T), not negative, rows sum to 1.
    """
    return (nearest_per_task(similarity, sizes) / temperature).softmax(1)
