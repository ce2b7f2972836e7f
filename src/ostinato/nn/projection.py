"""Gradient projection: updates that leave the directions used by old data alone.

Saha, Garg, Roy: "Gradient Projection Memory for Continual Learning", ICLR 2021, https://arxiv.org/abs/2103.09762,
keeps per layer a basis of the inputs of old tasks. Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection
for Continual Learning", ICLR 2024, https://openreview.net/forum?id=EH2O3h7sBI, applies it to prompts (PGP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ostinato.nn.growing import Growing

ROUNDING = 1e-12
"""Share of the energy that fp32 rows carry as rounding noise; what lies below is taken as covered."""


class Covariance:
    """The uncentred covariance R^T R of rows that come in batches, summed in fp64.

    Args:
        dim: width D of the rows.
        device: where it is summed.
        blocks: parts of a row, of equal width, that multiply their counterparts separately, as attention heads do.
            Each part counts as a row of its own that is zero elsewhere, so that the matrix is block-diagonal.
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
    """An orthonormal basis (D, r) of directions that updates must avoid; r grows with the tasks.

    Args:
        dim: width D.
    """

    basis: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("basis", torch.zeros(dim, 0))

    @torch.no_grad()
    def add(self, covariance: Tensor, energy: float) -> None:
        """Append the fewest directions that make the basis hold ``energy`` of the rows' energy (GPM).

        With the part R^ = R - R V V^T of the rows that the basis V misses, the leading eigenvectors of R^^T R^ are
        appended until ``|R V V^T|^2`` plus their eigenvalues reaches ``energy * |R|^2`` (Frobenius norms).

        Args:
            covariance: (D, D), R^T R of the rows.
            energy: share in (0, 1]; 1 takes every direction that the rows have beyond rounding.
        """
        d, r = self.basis.shape
        # In coordinates of the complement, new directions are orthogonal to the old ones and end at D by themselves.
        complement = torch.linalg.qr(self.basis.double(), mode="complete").Q[:, r:]
        residual = complement.T @ covariance.double() @ complement
        values, vectors = torch.linalg.eigh(residual)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        total = covariance.diagonal().sum()
        covered = total - residual.diagonal().sum()
        held = covered + torch.cat([values.new_zeros(1), values.cumsum(0)])  # by 0, 1, ... new directions
        n = min(int((held < (energy - ROUNDING) * total).sum()), d - r)
        self.basis = torch.cat([self.basis, (complement @ vectors[:, :n]).to(self.basis.dtype)], dim=1)

    def project(self, update: Tensor) -> Tensor:
        """The part of an update (..., D) that is orthogonal to the basis."""
        return update - (update @ self.basis) @ self.basis.T


class GradientProjection(nn.ModuleList):
    """A subspace for each part of a method's parameters, which updates of the part must leave alone.

    Args:
        shares: of the energy of old rows that a part must leave alone, in (0, 1], for each; none switches it off.
        dim: width D of each part and of its rows; one for all, or each its own.
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
        """Add the directions of a task that ends, see :meth:`Subspace.add`.

        Args:
            batches: inputs of the task.
            rows: from inputs to rows (n, D) for each part, which multiply the part in the forward pass.
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
        """Let the optimiser step, then keep of its update what is orthogonal to the subspaces.

        Projecting the gradient instead would not do: Adam rescales coordinates one by one, which leaves the subspace.

        Args:
            optimizer: whose gradients are ready.
            parts: n detached views (..., D) that share memory with what the optimiser trains; none may overlap.
        """
        before = [part.clone() for part in parts]
        optimizer.step()
        for space, part, old in zip(self, parts, before, strict=True):
            part.copy_(old + space.project(part - old))  # pyright: ignore[reportCallIssue]


def sampled(batches: Iterable[tuple[Tensor, Tensor]], n: int, most: int) -> Iterator[Tensor]:
    """Inputs of a random subset of samples, drawn from torch's global generator.

    Args:
        batches: of (x, y), together ``n`` samples.
        n: samples in the pass.
        most: samples wanted; all are given where there are no more.

    Yields:
        The chosen inputs of each batch that has some.
    """
    chosen = torch.zeros(n, dtype=torch.bool)
    chosen[torch.randperm(n)[:most]] = True
    at = 0
    for x, _ in batches:
        rows = chosen[at : at + len(x)].nonzero().flatten().to(x.device)
        at += len(x)
        if len(rows):
            yield x[rows]
