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

    def means(self) -> Tensor:
        """Class means (C, D) in fp32; zero for a class without samples."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()
