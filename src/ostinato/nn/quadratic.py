"""Quadratic discriminant analysis on a random projection, kept as sums that add."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.nn.discriminant import shrunk
from ostinato.nn.growing import Growing
from ostinato.nn.statistics import ClassMeans, add_by_label, add_to_means, apart_when_joined, between

SHARED = 2.0
"""Weight of the shared covariance in that of a class, in samples of a class of mean size."""

_AT_ONCE = 64


class QuadraticDiscriminant(Growing):
    """A Gaussian per class of a random projection of features, with a covariance between its own and the shared one.

    Friedman: "Regularized Discriminant Analysis", Journal of the American Statistical Association 1989. For n_c of n
    samples in class c of C, with the scatter S_c about its mean, its covariance is
    ``(r n / C S + S_c) / (r n / C + n_c - 1)`` with ``r = SHARED``. S is the covariance within classes, shrunk as in
    :class:`ostinato.nn.discriminant.LinearDiscriminant`.
    Differences: the shared covariance weighs as a number of samples, not as a share; features are projected onto random
    orthogonal directions, so that a class takes the same room beside every encoder.

    Args:
        dim: width D of features.
        size: K, directions, at most D. They are drawn from torch's global generator.

    Attributes:
        projection: (D, K), orthonormal.
        scatter: (C, K (K + 1) / 2) upper triangles of S_c, row by row.
    """

    projection: Tensor
    scatter: Tensor

    def __init__(self, dim: int, size: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.linalg.qr(torch.randn(dim, size)).Q)
        self.class_means = ClassMeans(size)
        self.register_buffer("scatter", torch.zeros(0, size * (size + 1) // 2, dtype=torch.float64))
        self._fitted: tuple[Tensor, Tensor, Tensor] | None = None  # follows from the sums, and is as large
        self.register_load_state_dict_pre_hook(_forget)

    def __len__(self) -> int:
        """Classes known."""
        return len(self.scatter)

    @property
    def size(self) -> int:
        """Directions."""
        return self.projection.shape[1]

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes.

        Args:
            features: (n, D) of the samples.
            labels: (n,) among all classes, known and new; the first new one is ``len(self)``.
            n_classes: how many classes are added.
        """
        rows = features.double() @ self.projection.double()
        self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(n_classes, self.scatter.shape[1])])
        for c, gained in add_to_means(self.class_means, rows, labels, n_classes):
            self.scatter[c] += self._packed(gained)
        self._fitted = None

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, (C,) in [0, C) or -1; classes of one number are joined, -1 drops a class."""
        apart, kept = apart_when_joined(self.class_means, labels), labels >= 0
        between_parts = self.class_means.counts[:, None] * self._products(apart)
        scatter = self.scatter.new_zeros(int(labels.max()) + 1, self.scatter.shape[1])
        self.scatter = add_by_label(scatter, labels[kept], (self.scatter + between_parts)[kept])
        self.class_means.relabel(labels)
        self._fitted = None

    @torch.no_grad()
    def merge(self, other: QuadraticDiscriminant, labels: Tensor) -> None:
        """Add the sums of another one.

        Args:
            other: with the same projection.
            labels: (classes of the other,) their numbers here; numbers beyond ``len(self)`` are new classes.

        Raises:
            InputError: if the projections differ.
        """
        if not torch.equal(self.projection, other.projection):
            raise InputError(
                "merge: the random projections differ, so that sums over them do not add. Use the same seed."
            )
        apart, weights = between(self.class_means, other.class_means, labels)
        self.class_means.merge(other.class_means, labels)
        scatter = self.scatter.new_zeros(len(self.class_means.counts), self.scatter.shape[1])
        scatter[: len(self)] = self.scatter
        self.scatter = add_by_label(scatter, labels, other.scatter + weights[:, None] * self._products(apart))
        self._fitted = None

    def _upper(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of an upper triangle."""
        i, j = torch.triu_indices(self.size, self.size, device=self.scatter.device)
        return i, j

    def _packed(self, matrices: Tensor) -> Tensor:
        """Upper triangles (..., K (K + 1) / 2) of symmetric matrices (..., K, K)."""
        i, j = self._upper()
        return matrices[..., i, j]

    def _unpacked(self, packed: Tensor) -> Tensor:
        """Symmetric matrices (..., K, K) of upper triangles (..., K (K + 1) / 2)."""
        i, j = self._upper()
        matrices = packed.new_zeros(*packed.shape[:-1], self.size, self.size)
        matrices[..., i, j] = packed
        matrices[..., j, i] = packed
        return matrices

    def _products(self, rows: Tensor) -> Tensor:
        """Products of all pairs of numbers, (n, K (K + 1) / 2), of rows (n, K)."""
        i, j = self._upper()
        return rows[:, i] * rows[:, j]

    def covariance(self) -> Tensor:
        """The shared covariance S, (K, K) in fp64."""
        degrees = int(self.class_means.counts.sum()) - len(self)
        return shrunk(self._unpacked(self.scatter.sum(0)), degrees)

    @torch.no_grad()
    def fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the log-densities, in coordinates in which the shared covariance is the identity.

        Returns:
            The map (D, K) of features to the coordinates, the origin (K,) in them, and weights
            (C, K (K + 1) / 2 + K + 1) of the products of two coordinates, the coordinates, and 1; all in fp32.
        """
        if self._fitted is not None:
            return self._fitted
        counts = self.class_means.counts
        factor = torch.linalg.cholesky(self.covariance())
        whiten = torch.linalg.solve_triangular(factor, torch.eye(self.size).to(factor), upper=False)
        origin = self.class_means.sums.sum(0) / counts.sum() @ whiten.T
        means = self.class_means.sums / counts.clamp(min=1)[:, None] @ whiten.T - origin
        shared = SHARED * float(counts.sum()) / len(self)
        i, j = self._upper()
        found = []
        for packed, m, n in zip(
            self.scatter.split(_AT_ONCE), means.split(_AT_ONCE), counts.split(_AT_ONCE), strict=True
        ):
            own = whiten @ self._unpacked(packed) @ whiten.T
            own.diagonal(dim1=1, dim2=2).add_(shared)
            cholesky = torch.linalg.cholesky(own / (shared + (n - 1).clamp(min=0))[:, None, None])
            precision = torch.cholesky_inverse(cholesky)
            linear = (precision @ m[:, :, None]).squeeze(2)
            half = cholesky.diagonal(dim1=1, dim2=2).log().sum(1) + (linear * m).sum(1) / 2
            pairs = self._packed(precision) * torch.where(i == j, -0.5, -1.0)
            found.append(torch.cat([pairs, linear, -half[:, None]], dim=1).float())
        to = (self.projection.double() @ whiten.T).float()
        self._fitted = to, origin.float(), torch.cat(found)
        return self._fitted

    def forward(self, features: Tensor) -> Tensor:
        """Log-density (B, C) of features (B, D) under every class, up to a constant."""
        with torch.autocast(features.device.type, enabled=False):
            to, origin, weights = self.fitted()
            x = features.float() @ to - origin
            return F.linear(torch.cat([self._products(x), x, torch.ones_like(x[:, :1])], dim=1), weights)


def _forget(module: Any, *_: Any) -> None:
    module._fitted = None
