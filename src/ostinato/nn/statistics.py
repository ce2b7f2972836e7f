"""Class means of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.nn.growing import Growing


class ClassMeans(Growing):
    """Running mean of the features of every class.

    Sums are fp64, so that means do not depend on the batches, to far below fp32 rounding.

    Args:
        dim: width D of the features.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(0, dim, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))

    def grow(self, n_classes: int) -> None:
        """Add ``n_classes`` classes."""
        self.sums = torch.cat([self.sums, self.sums.new_zeros(n_classes, self.sums.shape[1])])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(n_classes)])

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features (B, D), labels (B,) in [0, n_seen)."""
        self.sums.index_add_(0, labels, features.double())
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    @torch.no_grad()
    def merge(self, other: ClassMeans, labels: Tensor) -> None:
        """Add the sums and counts of another one.

        Args:
            other: of the same width.
            labels: (classes of the other,) their numbers here; numbers beyond those known are new classes.
        """
        self.grow(max(0, int(labels.max()) + 1 - len(self.counts)))
        self.sums = self.sums.index_add(0, labels, other.sums)
        self.counts = self.counts.index_add(0, labels, other.counts)

    def means(self) -> Tensor:
        """Class means (C, D) in fp32; zero for a class without samples."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()


def joined_scatter(one: ClassMeans, other: ClassMeans, labels: Tensor) -> Tensor:
    """The scatter that classes of two statistics have about their joined means beyond the scatters about their own.

    ``n m / (n + m) (a - b) (a - b)^T`` for n and m samples with the means a and b: Chan, Golub, LeVeque: "Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Args:
        one: statistics before the other are added.
        other: of the same width D.
        labels: (classes of the other,) their numbers in ``one``; numbers beyond those known are new classes.

    Returns:
        (classes of the other, D, D) in fp64; 0 for a class that only one of both has samples of.
    """
    n, m = one.counts.new_zeros(len(labels)), other.counts
    sums = torch.zeros_like(other.sums)
    known = labels < len(one.counts)
    n[known], sums[known] = one.counts[labels[known]], one.sums[labels[known]]
    apart = sums / n.clamp(min=1)[:, None] - other.sums / m.clamp(min=1)[:, None]
    shares = n.double() * m / (n + m).clamp(min=1)
    return shares[:, None, None] * apart[:, :, None] * apart[:, None, :]
