"""Distances to class means under a covariance per class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.nn.growing import Growing
from ostinato.nn.statistics import ClassMeans, add_to_means, apart_when_joined, between

ROUNDING = 1e-9
"""On the diagonal of correlation matrices, so that one without variance in some direction is still factored."""

_AT_ONCE = 64


class ClassMahalanobis(Growing):
    """Squared Mahalanobis distances ``(x - m_c)^T N(S_c)^-1 (x - m_c)`` to the mean m_c of every class.

    S_c is the unbiased covariance of a class, shrunk: ``cov_c + g1 v1 I + g2 v2 (1 - I)``, v1 the mean of its diagonal
    and v2 that of the other entries. N divides by the standard deviations, which leaves a correlation matrix and makes
    distances of different classes comparable.

    Args:
        dim: width D of features.
        gamma1: g1, positive.
        gamma2: g2, in [0, g1], which leaves every S_c positive.
    """

    scatter: Tensor

    def __init__(self, dim: int, *, gamma1: float = 1.0, gamma2: float = 0.0) -> None:
        super().__init__()
        self.gamma1, self.gamma2 = gamma1, gamma2
        self.class_means = ClassMeans(dim)
        self.register_buffer("scatter", torch.zeros(0, dim, dim, dtype=torch.float64))  # about the mean of each class
        self._whitening: Tensor | None = None  # follows from the scatter, which is large enough to save
        self.register_load_state_dict_pre_hook(_forget)

    def __len__(self) -> int:
        """Classes known."""
        return len(self.scatter)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes.

        Args:
            features: (n, D) of the samples.
            labels: (n,) among all classes, known and new; the first new one is ``len(self)``.
            n_classes: how many classes are added.
        """
        self.scatter = torch.cat([self.scatter, self.scatter.new_zeros(n_classes, *self.scatter.shape[1:])])
        for c, gained in add_to_means(self.class_means, features, labels, n_classes):
            self.scatter[c] += gained
        self._whitening = None

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, (C,) in [0, C) or -1; classes of one number are joined, -1 drops a class."""
        apart = apart_when_joined(self.class_means, labels)
        scatter = self.scatter.new_zeros(int(labels.max()) + 1, *self.scatter.shape[1:])
        for c, label in enumerate(labels.tolist()):
            if label >= 0:
                scatter[label] += self.scatter[c] + self.class_means.counts[c] * torch.outer(apart[c], apart[c])
        self.class_means.relabel(labels)
        self.scatter, self._whitening = scatter, None

    @torch.no_grad()
    def merge(self, other: ClassMahalanobis, labels: Tensor) -> None:
        """Add the sums of another one.

        Args:
            other: of the same width.
            labels: (classes of the other,) their numbers here; numbers beyond ``len(self)`` are new classes.
        """
        apart, weights = between(self.class_means, other.class_means, labels)
        joined = weights[:, None, None] * apart[:, :, None] * apart[:, None, :]
        self.class_means.merge(other.class_means, labels)
        added = self.scatter.new_zeros(len(self.class_means.counts), *self.scatter.shape[1:])
        added[: len(self)] = self.scatter
        self.scatter = added.index_add(0, labels, other.scatter + joined)
        self._whitening = None

    def correlations(self) -> Tensor:
        """The normalised covariances N(S_c), (C, D, D) in fp64; the identity where a class does not vary."""
        eye = torch.eye(self.scatter.shape[1], dtype=torch.float64, device=self.scatter.device)
        covariance = self.scatter / (self.class_means.counts - 1).clamp(min=1)[:, None, None]
        diagonal = covariance.diagonal(dim1=1, dim2=2)
        v1 = diagonal.mean(1)[:, None, None]
        d = len(eye)
        v2 = (covariance.sum((1, 2)) - diagonal.sum(1))[:, None, None] / max(d * (d - 1), 1)
        shrunk = covariance + self.gamma1 * v1 * eye + self.gamma2 * v2 * (1 - eye)
        shrunk = torch.where(v1 > 0, shrunk, eye)
        std = shrunk.diagonal(dim1=1, dim2=2).sqrt()
        return shrunk / (std[:, :, None] * std[:, None, :])

    def whitening(self) -> Tensor:
        """Matrices A_c, (C, D, D) in fp32, with ``|A_c (x - m_c)|^2`` the distance."""
        if self._whitening is not None:
            return self._whitening
        correlations = self.correlations()
        eye = torch.eye(correlations.shape[1], dtype=torch.float64, device=correlations.device)
        factors = torch.linalg.cholesky(correlations + ROUNDING * eye)
        found = torch.linalg.solve_triangular(factors, eye.expand_as(factors), upper=False).float()
        self._whitening = found
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Squared distances (B, C) of features (B, D)."""
        with torch.autocast(features.device.type, enabled=False):
            means, whitening = self.class_means.means(), self.whitening()
            found = []
            for m, a in zip(means.split(_AT_ONCE), whitening.split(_AT_ONCE), strict=True):
                apart = features.float()[None] - m[:, None]  # (C, B, D)
                found.append((apart @ a.mT).square().sum(-1).T)
            return torch.cat(found, dim=1)


def _forget(module: Any, *_: Any) -> None:
    module._whitening = None
