"""Matching queries to keys."""

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
