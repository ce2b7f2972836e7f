"""How typical an input is of the classes learned, by the distance of its features to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.growing import Growing

ROUNDING = 1e-4
"""Largest relative difference of two distances of the same input, whose features differ in rounding."""


class Typicality(Growing):
    """Share of held-out samples that lie at least as far from the classes as an input.

    The distance is the smallest squared Mahalanobis distance to the mean of a class under the shared covariance: Lee,
    Lee, Lee, Shin: "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018, https://arxiv.org/abs/1807.03888, equation 2. Of n held-out samples, of which k are at least as far,
    the share is (k + 1) / (n + 1): Bates, Candes, Lei, Romano, Sesia: "Testing for Outliers with Conformal p-values",
    Annals of Statistics 2023, https://arxiv.org/abs/2104.08279, equation 2. A new sample of the classes gets a share
    of r or less with a probability of at most r.

    Args:
        dim: width D of the features.

    Attributes:
        classes: sums over training samples.
        distances: (n,) of the held-out samples, ascending.
    """

    distances: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.classes = LinearDiscriminant(dim)
        self.register_buffer("distances", torch.zeros(0, dtype=torch.float64))
        self._whitening: Tensor | None = None  # follows from the sums
        self.register_load_state_dict_pre_hook(_forget)

    @property
    def samples(self) -> int:
        """Number of held-out samples."""
        return len(self.distances)

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add training samples and the next classes, see :meth:`LinearDiscriminant.add`."""
        self.classes.add(features, labels, n_classes)
        self._whitening = None

    @torch.no_grad()
    def hold_out(self, features: Tensor, earlier: Tensor) -> None:
        """Set the held-out samples: features (n, D), and distances (m,) of those without features."""
        self.distances = torch.cat([earlier, self.distance(features)]).sort().values

    @torch.no_grad()
    def forget(self, features: Tensor, label: int) -> None:
        """Subtract a class from the covariance, see :meth:`LinearDiscriminant.forget`."""
        self.classes.forget(features, label)
        self._whitening = None

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, see :meth:`LinearDiscriminant.relabel`."""
        self.classes.relabel(labels)
        self._whitening = None

    @torch.no_grad()
    def merge(self, other: Typicality, labels: Tensor) -> None:
        """Add the sums and held-out samples of another one, see :meth:`LinearDiscriminant.merge`."""
        self.classes.merge(other.classes, labels)
        self.distances = torch.cat([self.distances, other.distances]).sort().values
        self._whitening = None

    def check(self) -> None:
        """Raise RuntimeError unless the shapes of loaded tensors fit each other."""
        means, d = self.classes.class_means, self.dim
        wanted = {"sums": (len(means.counts), d), "scatter": (d, d), "weight": (len(self.classes), d)}
        found = {"sums": means.sums, "scatter": self.classes.scatter, "weight": self.classes.weight}
        if wrong := [name for name, shape in wanted.items() if found[name].shape != shape]:
            raise RuntimeError(f"{wrong[0]} must be {wanted[wrong[0]]}, got {tuple(found[wrong[0]].shape)}")
        if len(means.counts) != len(self.classes) or self.distances.ndim != 1:
            raise RuntimeError(f"counts {tuple(means.counts.shape)} and distances {tuple(self.distances.shape)}")

    def distance(self, features: Tensor) -> Tensor:
        """Squared distance (B,) of features (B, D) to the nearest class, in fp64."""
        sums, whitening = self.classes.class_means, self.whitening()
        means = sums.sums / sums.counts[:, None]
        return torch.cdist(features.double() @ whitening.T, means @ whitening.T).amin(1).square()

    def whitening(self) -> Tensor:
        """Matrix A (D, D) in fp64, with ``|A x|^2`` the squared length of x under the covariance."""
        if self._whitening is not None:
            return self._whitening
        factor = torch.linalg.cholesky(self.classes.covariance())
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        found = torch.linalg.solve_triangular(factor, eye, upper=False)
        self._whitening = found
        return found

    def forward(self, features: Tensor) -> Tensor:
        """Shares (B,) in (0, 1] of features (B, D)."""
        nearer = torch.searchsorted(self.distances, self.distance(features) * (1 - ROUNDING))
        return (self.samples - nearer + 1).double() / (self.samples + 1)


def _forget(module: Any, *_: Any) -> None:
    module._whitening = None
