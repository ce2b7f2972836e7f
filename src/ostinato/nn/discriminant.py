"""Incremental linear discriminant analysis."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.nn.growing import Growing
from ostinato.nn.statistics import ClassMeans, joined_scatter


class LinearDiscriminant(Growing):
    """A Gaussian N(mean_c, cov) per class with a shared covariance, kept as sums.

    Hayes, Kanan: "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops 2020,
    https://arxiv.org/abs/1909.01520. Differences: the covariance is the pooled within-class one, and class priors are
    uniform. It is shrunk towards a multiple of the identity by OAS: Chen, Wiesel, Eldar, Hero: "Shrinkage Algorithms
    for MMSE Covariance Estimation", IEEE Transactions on Signal Processing 2010, eq. 23.

    Args:
        dim: width D of the features.
    """

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
        """Append the next ``n_classes`` classes.

        Args:
            features: (n, D) of their samples.
            labels: (n,) among all classes; the first new one is ``len(self)``. Each class needs a sample.
            n_classes: number of new classes.
        """
        self.class_means.grow(n_classes)
        self.class_means.update(features, labels)
        means = self.class_means.sums / self.class_means.counts[:, None]
        centred = features.double() - means[labels]
        self.scatter = self.scatter + centred.T @ centred
        self._fit(means)

    @torch.no_grad()
    def merge(self, other: LinearDiscriminant, labels: Tensor) -> None:
        """Add the sums of another one.

        Args:
            other: of the same width.
            labels: (classes of the other,) their numbers here; numbers beyond ``len(self)`` are new classes.
        """
        between = joined_scatter(self.class_means, other.class_means, labels).sum(0)
        self.class_means.merge(other.class_means, labels)
        self.scatter = self.scatter + other.scatter + between
        self._fit(self.class_means.sums / self.class_means.counts[:, None])

    def _fit(self, means: Tensor) -> None:
        """Solve for the weights, given the means (C, D) in fp64."""
        weight = torch.linalg.solve(self.covariance(), means.T).T
        self.weight, self.bias = weight.float(), (-0.5 * (weight * means).sum(1)).float()

    def covariance(self) -> Tensor:
        """The shrunk covariance (D, D) in fp64; the identity if no class varies."""
        n, dim = self.degrees, len(self.scatter)
        eye = torch.eye(dim, dtype=self.scatter.dtype, device=self.scatter.device)
        sample = self.scatter / max(n, 1)
        size = float(sample.trace())
        if size == 0:
            return eye
        squares = float(sample.square().sum())
        spread = (n + 1 - 2 / dim) * (squares - size**2 / dim)
        share = min(1.0, ((1 - 2 / dim) * squares + size**2) / spread) if spread > 0 else 1.0
        return (1 - share) * sample + share * size / dim * eye

    def forward(self, features: Tensor) -> Tensor:
        """Log-likelihood (B, C) of features (B, D) under every class, up to a constant per sample."""
        with torch.autocast(features.device.type, enabled=False):
            return features.float() @ self.weight.T + self.bias
