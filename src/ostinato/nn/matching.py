"""Matching queries to keys."""

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
    return F.normalize(query.float(), dim=-1) @ F.normalize(keys.float(), dim=-1).T
