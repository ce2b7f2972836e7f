"""Similarity of queries and keys, and entropy of predictions."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine similarity of every query with every key, in fp32.

    Args:
        query: (B, D).
        keys: (M, D).

    Returns:
        (B, M) in [-1, 1].
    """
    with torch.autocast(query.device.type, enabled=False):
        return F.normalize(query.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T


def entropy(logits: Tensor, top: int | None = None) -> Tensor:
    """Entropy in nats of the softmax over the last axis, in fp32.

    Args:
        logits: (..., C).
        top: use only the ``top`` largest logits; None for all.

    Returns:
        (...) in [0, log C].
    """
    logits = logits.float()
    if top is not None:
        logits = logits.topk(min(top, logits.shape[-1]), dim=-1).values
    log_p = F.log_softmax(logits, dim=-1)
    return -(log_p.exp() * log_p).sum(-1)


def nearest_per_task(similarity: Tensor, sizes: Sequence[int]) -> Tensor:
    """The largest similarity (B, T) within each task.

    Args:
        similarity: (B, C), classes in the order of their tasks.
        sizes: classes of each of the T tasks; they sum to C.
    """
    return torch.stack([part.amax(1) for part in similarity.split(list(sizes), dim=1)], dim=1)
