"""Solve linear systems of a Gram matrix plus a multiple of the identity."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 4
"""A Gram matrix has few samples if it has this many times more rows: factors of its rank cost less than of its size."""


class ShiftedGram:
    """Solves ``(G + l I) X = B`` for several l.

    G of few samples is factored once as ``L^T L`` with a row per sample, so that a system costs n^3 instead of M^3
    operations; the results differ by rounding.

    Args:
        gram: G (M, M), symmetric and positive semi-definite, in fp64.
        n_samples: n, whose products it sums.
    """

    def __init__(self, gram: Tensor, n_samples: int) -> None:
        self.gram = gram
        self.thin = pivoted_cholesky(gram, n_samples) if FEW * n_samples <= len(gram) else None
        self.products = None if self.thin is None else self.thin @ self.thin.T

    def solve(self, penalty: float, right: Tensor) -> Tensor | None:
        """X (M, k) for the right side (M, k); None where rounding leaves the matrix singular."""
        if self.thin is None or self.products is None:
            factor = _factor(self.gram, penalty)
            return None if factor is None else torch.cholesky_solve(right, factor)
        if penalty <= _rounding(self.gram.diagonal()):
            return None
        small = _factor(self.products, penalty)
        if small is None:
            return None
        return (right - self.thin.T @ torch.cholesky_solve(self.thin @ right, small)) / penalty


def _rounding(diagonal: Tensor) -> float:
    """Size of the rounding errors of a matrix with this diagonal (M,)."""
    return len(diagonal) * torch.finfo(diagonal.dtype).eps * float(diagonal.amax())


def _factor(matrix: Tensor, penalty: float) -> Tensor | None:
    matrix = matrix.clone()
    matrix.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return None if int(failed) else factor


def pivoted_cholesky(matrix: Tensor, rank: int) -> Tensor | None:
    """Factor a symmetric positive semi-definite matrix of low rank, by Cholesky steps on the largest diagonal entry.

    Args:
        matrix: (M, M), in fp64.
        rank: the largest rank allowed.

    Returns:
        L (r, M) with ``L^T L = matrix`` up to rounding and r at most ``rank``; None if the rank is larger.
    """
    rest = matrix.diagonal().clone()
    tiny = _rounding(rest)
    rows = matrix.new_zeros(rank, len(matrix))
    for k in range(rank):
        pivot = int(rest.argmax())
        if float(rest[pivot]) <= tiny:
            return rows[:k]
        row = matrix[pivot] - rows[:k, pivot] @ rows[:k]
        rows[k] = row / rest[pivot].sqrt()
        rest -= rows[k].square()
    return rows if float(rest.amax()) <= tiny else None
