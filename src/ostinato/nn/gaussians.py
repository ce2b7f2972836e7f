"""Class Gaussians, from which features of old classes are sampled."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.nn.growing import Growing

COVARIANCES = ("full", "shared", "diagonal")


class ClassGaussians(Growing):
    """A Gaussian N(mean_c, cov_c) per class, kept as mean and Cholesky factor.

    Args:
        dim: width D of the features.
        covariance: "full" keeps the covariance of each class, "diagonal" its diagonal; "shared" mixes each class's
            covariance with the mean covariance of the classes added with it.
        ridge: added to the diagonal, so that classes with fewer than D samples are usable.
        shrink: weight of the mean covariance under "shared".
    """

    means: Tensor
    factors: Tensor

    def __init__(self, dim: int, *, covariance: str = "full", ridge: float = 1e-4, shrink: float = 0.5) -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise InputError(f"method.covariance must be one of {list(COVARIANCES)}, got {covariance!r}.")
        if ridge <= 0 or not 0 <= shrink <= 1:
            raise InputError(f"method.ridge must be positive and method.shrink in [0, 1], got {ridge} and {shrink}.")
        self.covariance, self.ridge, self.shrink = covariance, ridge, shrink
        self.register_buffer("means", torch.zeros(0, dim))
        shape = (0, dim) if covariance == "diagonal" else (0, dim, dim)
        self.register_buffer("factors", torch.zeros(shape))

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.means)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Append the next ``n_classes`` classes.

        The covariance is the unbiased estimate plus ``ridge`` on the diagonal; that of a class with one sample is the
        ridge alone (under "shared", plus its part of the mean).

        Args:
            features: (n, D) of their samples.
            labels: (n,) among all classes; the first new one is ``len(self)``.
            n_classes: number of new classes; each needs a sample.

        Raises:
            InputError: if a class has no sample.
        """
        features = features.double()
        means, covariances = [], []
        for c in range(len(self), len(self) + n_classes):
            rows = features[labels == c]
            if not len(rows):
                raise InputError(f"ClassGaussians.add: class {c} needs a sample, got none.")
            centred = rows - rows.mean(0)
            means.append(rows.mean(0))
            covariances.append(centred.T @ centred / max(len(rows) - 1, 1))
        covariance = torch.stack(covariances)
        if self.covariance == "shared":
            covariance = (1 - self.shrink) * covariance + self.shrink * covariance.mean(0)
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        covariance = covariance + self.ridge * eye
        if self.covariance == "diagonal":
            factors = covariance.diagonal(dim1=1, dim2=2).sqrt()
        else:
            factors = torch.linalg.cholesky(covariance)
        self.means = torch.cat([self.means, torch.stack(means).float()])
        self.factors = torch.cat([self.factors, factors.float()])

    @torch.no_grad()
    def sample(self, labels: Tensor) -> Tensor:
        """One draw per label: (B,) in [0, len) to (B, D), from torch's global generator."""
        noise = torch.randn(len(labels), self.means.shape[1], device=self.means.device)
        if self.covariance == "diagonal":
            return self.means[labels] + noise * self.factors[labels]
        # One product per class: gathering a factor per sample would take B x D x D.
        out = self.means[labels]
        for c in labels.unique().tolist():
            rows = labels == c
            out[rows] += noise[rows] @ self.factors[c].T
        return out
