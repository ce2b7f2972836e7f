"""Incremental linear discriminant analysis."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.nn.growing import Growing
from ostinato.nn.statistics import ClassMeans, apart_when_joined, between, sums_of


class LinearDiscriminant(Growing):
    """A Gaussian N(mean_c, cov) per class with a shared covariance, kept as sums.

    Hayes, Kanan: "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops 2020,
    https://arxiv.org/abs/1909.01520. Differences: the covariance is the pooled within-class one, and class priors are
    uniform. It is shrunk towards a multiple of the identity by OAS: Chen, Wiesel, Eldar, Hero: "Shrinkage Algorithms
    for MMSE Covariance Estimation", IEEE Transactions on Signal Processing 2010, eq. 23.

    Args:
        dim: width D of the features.
    """

    shared = "covariance"
    scatter: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.class_means = ClassMeans(dim)
        self.register_buffer("scatter", torch.zeros(dim, dim, dtype=torch.float64))  # about the means of the classes
        # Derived from the sums; kept because solving takes longer than scoring a batch.
        self.register_buffer("weight", torch.zeros(0, dim))
        self.register_buffer("bias", torch.zeros(0))

    def __len__(self) -> int:
        """Classes known."""
        return len(self.bias)

    @property
    def degrees(self) -> int:
        """Degrees of freedom of the covariance: samples less classes."""
        return int(self.class_means.counts.sum()) - len(self.class_means.counts)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes.

        Args:
            features: (n, D) of the samples.
            labels: (n,) among all classes, known and new; the first new one is ``len(self)``.
            n_classes: number of new classes, each with a sample.
        """
        total = len(self) + n_classes
        added = sums_of(features, labels, total)
        centred = features.double() - (added.sums / added.counts.clamp(min=1)[:, None])[labels]
        apart, weights = between(self.class_means, added, torch.arange(total, device=labels.device))
        self.class_means.grow(n_classes)
        self.class_means.update(features, labels)
        self.scatter = self.scatter + centred.T @ centred + apart.T @ (weights[:, None] * apart)
        self._fit()

    @torch.no_grad()
    def forget(self, features: Tensor, label: int) -> None:
        """Subtract the scatter of a class within itself, given the features (n, D) of all its samples.

        Raises:
            InputError: if they are not those learned.
        """
        self.class_means.check_all(label, features)
        centred = features.double() - features.double().mean(0)
        self.scatter = self.scatter - centred.T @ centred

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, (C,) in [0, C) or -1; classes of one number are joined, -1 drops a class.

        The scatter of a dropped class within itself stays in the shared covariance, unless :meth:`forget` took it away.
        """
        apart = apart_when_joined(self.class_means, labels)
        self.scatter = self.scatter + apart.T @ (self.class_means.counts[:, None] * apart)
        self.class_means.relabel(labels)
        self._fit()

    @torch.no_grad()
    def merge(self, other: LinearDiscriminant, labels: Tensor) -> None:
        """Add the sums of another one.

        Args:
            other: of the same width.
            labels: (classes of the other,) their numbers here; numbers beyond ``len(self)`` are new classes.
        """
        apart, weights = between(self.class_means, other.class_means, labels)
        self.class_means.merge(other.class_means, labels)
        self.scatter = self.scatter + other.scatter + apart.T @ (weights[:, None] * apart)
        self._fit()

    def _fit(self) -> None:
        """Solve for the weights."""
        means = self.class_means.sums / self.class_means.counts[:, None]
        weight = torch.linalg.solve(self.covariance(), means.T).T
        self.weight, self.bias = weight.float(), (-0.5 * (weight * means).sum(1)).float()

    def covariance(self) -> Tensor:
        """The shrunk covariance (D, D) in fp64; the identity if no class varies."""
        return shrunk(self.scatter, self.degrees)

    def forward(self, features: Tensor) -> Tensor:
        """Log-likelihood (B, C) of features (B, D) under every class, up to a constant per sample."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.weight.T + self.bias


def shrunk(scatter: Tensor, degrees: int) -> Tensor:
    """Covariance (D, D) of a scatter matrix, shrunk by OAS; the identity if it is zero.

    Args:
        scatter: (D, D) in fp64.
        degrees: of freedom; below 1 counts as 1.
    """
    dim = len(scatter)
    eye = torch.eye(dim, dtype=scatter.dtype, device=scatter.device)
    sample = scatter / max(degrees, 1)
    size = float(sample.trace())
    if size == 0:
        return eye
    squares = float(sample.square().sum())
    spread = (degrees + 1 - 2 / dim) * (squares - size**2 / dim)
    share = min(1.0, ((1 - 2 / dim) * squares + size**2) / spread) if spread > 0 else 1.0
    return (1 - share) * sample + share * size / dim * eye
