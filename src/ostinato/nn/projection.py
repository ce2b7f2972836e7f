"""Gradient projection: keep updates orthogonal to the inputs of old tasks.

Saha, Garg, Roy: "Gradient Projection Memory for Continual Learning", ICLR 2021, https://arxiv.org/abs/2103.09762 (GPM).
For prompts: Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI (PGP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.nn.growing import Growing

ROUNDING = 1e-12
"""Share of the energy of fp32 rows that is rounding noise and needs no direction."""


class Covariance:
    """The uncentred covariance R^T R of batches of rows, summed in fp64.

    Args:
        dim: width D of the rows.
        device: of the sums.
        blocks: equal parts of a row that act separately, as attention heads do. Each part counts as a row that is zero
            elsewhere, so the matrix is block-diagonal.
    """

    def __init__(self, dim: int, *, device: torch.device, blocks: int = 1) -> None:
        self.sums = torch.zeros(blocks, dim // blocks, dim // blocks, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(self, rows: Tensor) -> None:
        """Add rows (n, D)."""
        parts = rows.double().unflatten(-1, (len(self.sums), -1)).transpose(0, 1)
        self.sums += parts.mT @ parts

    def matrix(self) -> Tensor:
        """The matrix (D, D) in fp64."""
        return torch.block_diag(*self.sums)


class Subspace(Growing):
    """An orthonormal basis (D, r) of the directions that updates must avoid; r grows with the tasks."""

    basis: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(dim, 0))

    @torch.no_grad()
    def add(self, covariance: Tensor, energy: float) -> None:
        """Append the fewest directions so that the basis holds ``energy`` of the rows' energy (GPM).

        With the residual R^ = R - R V V^T of the rows under the basis V, the leading eigenvectors of R^^T R^ are
        appended until ``|R V V^T|^2`` plus their eigenvalues reaches ``energy * |R|^2`` (Frobenius norms).

        Args:
            covariance: (D, D), R^T R of the rows.
            energy: share in (0, 1]; 1 takes every direction of the rows beyond rounding.
        """
        d, r = self.basis.shape
        complement, residual = self._residual(covariance)
        values, vectors = torch.linalg.eigh(residual)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        total = covariance.diagonal().sum()
        covered = total - residual.diagonal().sum()
        held = covered + torch.cat([values.new_zeros(1), values.cumsum(0)])  # by 0, 1, ... new directions
        n = min(int((held < (energy - ROUNDING) * total).sum()), d - r)
        self.basis = torch.cat([self.basis, (complement @ vectors[:, :n]).to(self.basis.dtype)], dim=1)

    def _residual(self, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """An orthonormal basis (D, D - r) of the complement, and ``R^^T R^`` in its coordinates, both in fp64.

        The coordinates keep new directions orthogonal to old ones, and their number within D.
        """
        complement = torch.linalg.qr(self.basis.double(), mode="complete").Q[:, self.basis.shape[1] :]
        return complement, complement.T @ covariance.double() @ complement

    @torch.no_grad()
    def leading(self, covariance: Tensor, n: int) -> Tensor:
        """The n orthonormal directions (n, D) orthogonal to the basis in which rows have most energy.

        Args:
            covariance: (D, D), R^T R of the rows.
            n: number of directions; those beyond the D - r that exist are zero.
        """
        complement, residual = self._residual(covariance)
        vectors = (complement @ torch.linalg.eigh(residual).eigenvectors.flip(1))[:, :n]
        return F.pad(vectors, (0, n - vectors.shape[1])).T.to(self.basis.dtype)

    def project(self, update: Tensor) -> Tensor:
        """The part of an update (..., D) that is orthogonal to the basis."""
        return update - (update @ self.basis) @ self.basis.T


class GradientProjection(nn.ModuleList):
    """Projection of the updates of several parameters, each with a subspace of old directions.

    Args:
        shares: of the energy of old rows that updates must avoid, in (0, 1], per parameter; none switches it off.
        dim: width D of each parameter and of its rows; one for all, or one each.
        blocks: of a row, see :class:`Covariance`.
    """

    def __init__(self, shares: Sequence[float], dim: int | Sequence[int], *, blocks: int = 1) -> None:
        dims = (dim,) * len(shares) if isinstance(dim, int) else tuple(dim)
        super().__init__(Subspace(width) for width in dims)
        self.shares, self.dims, self.blocks = tuple(shares), dims, blocks

    @property
    def on(self) -> bool:
        """Whether anything is projected."""
        return bool(self.shares)

    @torch.no_grad()
    def collect(self, batches: Iterable[Tensor], rows: Callable[[Tensor], Iterable[Tensor]]) -> None:
        """Add the directions of a finished task, see :meth:`Subspace.add`.

        Args:
            batches: inputs of the task.
            rows: from inputs to the rows (n, D) that multiply each parameter in the forward pass.
        """
        sums: list[Covariance] = []
        for x in batches:
            found = list(rows(x))
            sums = sums or [Covariance(width, device=x.device, blocks=self.blocks) for width in self.dims]
            for covariance, part in zip(sums, found, strict=True):
                covariance.add(part)
        for space, covariance, share in zip(self, sums, self.shares, strict=True):
            space.add(covariance.matrix(), share)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, parts: Sequence[Tensor]) -> None:
        """Step the optimiser, then project its update off the subspaces.

        The gradient is not projected, because Adam rescales single coordinates, which leaves the subspace.

        Args:
            optimizer: with its gradients ready.
            parts: n detached, non-overlapping views (..., D) of trained parameters.
        """
        before = [part.clone() for part in parts]
        optimizer.step()
        for space, part, old in zip(self, parts, before, strict=True):
            part.copy_(old + space.project(part - old))  # pyright: ignore[reportCallIssue]


def sampled(batches: Iterable[tuple[Tensor, Tensor]], n: int, most: int) -> Iterator[Tensor]:
    """Yield the inputs of ``most`` random samples, drawn from torch's global generator, batch by batch.

    Args:
        batches: of (x, y).
        n: samples of all batches together.
        most: samples to draw; all if there are no more.
    """
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n)[:most]] = True
    at = 0
    for x, _ in batches:
        rows = chosen[at : at + len(x)].nonzero().flatten().to(x.device)
        at += len(x)
        if len(rows):
            yield x[rows]
