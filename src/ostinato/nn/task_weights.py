"""How much of each task an input is given, from class scores of all tasks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ostinato.nn.matching import nearest_per_task


def weights_by_probability(logits: Tensor, sizes: Sequence[int]) -> Tensor:
    """Share of each task in the predicted probability.

    The softmax runs over all classes; a task counts with the mean over its own, so that tasks with many classes
    gain nothing from their size. Equal logits give equal weights.

    Args:
        logits: (B, C), classes in the order of their tasks.
        sizes: classes of each of the T tasks; they sum to C.

    Returns:
        (B, T), not negative, rows sum to 1.
    """
    counts = torch.tensor(list(sizes))
    # (C, T): the share of a class in the mean of its task.
    share = (torch.eye(len(sizes)) / counts).repeat_interleave(counts, dim=0)
    means = logits.softmax(1) @ share.to(logits)
    return means / means.sum(1, keepdim=True)


def weights_by_similarity(similarity: Tensor, sizes: Sequence[int], temperature: float) -> Tensor:
    """Softmax over tasks of the similarity to the nearest class of each.

    Args:
        similarity: (B, C), classes in the order of their tasks.
        sizes: classes of each of the T tasks; they sum to C.
        temperature: divides the similarities; small values choose hard.

    Returns:
        (B, T), not negative, rows sum to 1.
    """
    return (nearest_per_task(similarity, sizes) / temperature).softmax(1)
