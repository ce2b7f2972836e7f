"""Deterministic k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.nn.statistics import add_by_label

ROUNDS = 10


@torch.no_grad()
def centres(points: Tensor, k: int) -> Tensor:
    """Centres (k, D) of points (n, D) by Lloyd's algorithm, in fp64.

    The first centre is the point nearest to the mean, each further one the point farthest from the centres so far
    (farthest-point initialisation), so nothing is random. Centres repeat if there are fewer than k distinct points.
    """
    points = points.double()
    chosen = [int((points - points.mean(0)).norm(dim=1).argmin())]
    far = (points - points[chosen[0]]).norm(dim=1)
    for _ in range(k - 1):
        chosen.append(int(far.argmax()))
        far = torch.minimum(far, (points - points[chosen[-1]]).norm(dim=1))
    middle = points[chosen].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, middle).argmin(1)
        sums = add_by_label(torch.zeros_like(middle), nearest, points)
        sizes = torch.bincount(nearest, minlength=k)[:, None]
        middle = torch.where(sizes > 0, sums / sizes.clamp(min=1), middle)
    return middle


@torch.no_grad()
def representatives(points: Tensor, k: int) -> Tensor:
    """Ascending, distinct positions of the points (n, D) nearest to k centres."""
    if k >= len(points):
        return torch.arange(len(points), device=points.device)
    return torch.cdist(centres(points, k), points.double()).argmin(1).unique()
