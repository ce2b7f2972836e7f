"""Class means of frozen features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.nn.growing import Growing
from ostinato.nn.matching import cosine

ROUNDING = 1e-5
"""Largest difference of two sums of the same fp32 features, relative to the sum of their lengths."""


def add_by_label(sums: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Add rows (B, D) to the sums (C, D) of their labels (B,) in place, in the same order in every run.

    On a GPU, ``index_add_`` adds in any order, so that two runs round differently; on a CPU, accumulation by
    ``index_put_`` does.
    """
    if sums.device.type == "cpu":
        return sums.index_add_(0, labels, rows)
    return sums.index_put_((labels,), rows, accumulate=True)


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
        add_by_label(self.sums, labels, features.double())
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

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, (C,) in [0, C) or -1; classes of one number are joined, -1 drops a class."""
        kept, n = labels >= 0, int(labels.max()) + 1
        self.sums = self.sums.new_zeros(n, self.sums.shape[1]).index_add(0, labels[kept], self.sums[kept])
        self.counts = self.counts.new_zeros(n).index_add(0, labels[kept], self.counts[kept])

    def check_all(self, label: int, features: Tensor) -> None:
        """Make sure that features (n, D) are of all samples of a class.

        Raises:
            InputError: if their number or their sum differs.
        """
        n, known = len(features), int(self.counts[label])
        if n != known:
            raise InputError(f"The samples to forget must be all {known} that were learned of the class, got {n}.")
        apart = float((features.double().sum(0) - self.sums[label]).norm())
        if apart > ROUNDING * float(features.double().norm(dim=1).sum()):
            raise InputError(f"The {n} samples to forget must be those that were learned; their mean is another one.")

    def means(self) -> Tensor:
        """Class means (C, D) in fp32; zero for a class without samples."""
        return (self.sums / self.counts.clamp(min=1)[:, None]).float()


class NearestMeans(ClassMeans):
    """A classifier by the cosine with class means."""

    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes.

        Args:
            features: (n, D) of the samples.
            labels: (n,) among all classes, known and new.
            n_classes: how many classes are added.
        """
        self.grow(n_classes)
        self.update(features, labels)

    def forward(self, features: Tensor) -> Tensor:
        """Cosines (B, C) of features (B, D) with all class means."""
        return cosine(features, self.means())


def sums_of(features: Tensor, labels: Tensor, n_classes: int) -> ClassMeans:
    """Sums of features (n, D) with labels (n,) in [0, n_classes)."""
    found = ClassMeans(features.shape[1]).to(features.device)
    found.grow(n_classes)
    found.update(features, labels)
    return found


def between(one: ClassMeans, other: ClassMeans, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Differences d and weights w of the means of the same classes in two statistics.

    About its joined mean, a class scatters by ``w d d^T`` beyond its scatters about both means, with
    ``w = n m / (n + m)`` for n and m samples: Chan, Golub, LeVeque: "Updating Formulae and a Pairwise Algorithm for
    Computing Sample Variances", 1979.

    Args:
        one: statistics before the other are added.
        other: of the same width D.
        labels: (C,) numbers of the other's classes in ``one``; numbers beyond those known are new classes.

    Returns:
        d (C, D) and w (C,) in fp64; w is 0 for a class that only one of both has samples of.
    """
    n, m = one.counts.new_zeros(len(labels)), other.counts
    sums = torch.zeros_like(other.sums)
    known = labels < len(one.counts)
    n[known], sums[known] = one.counts[labels[known]], one.sums[labels[known]]
    apart = sums / n.clamp(min=1)[:, None] - other.sums / m.clamp(min=1)[:, None]
    return apart, n.double() * m / (n + m).clamp(min=1)


def add_to_means(means: ClassMeans, features: Tensor, labels: Tensor, n_classes: int) -> Iterator[tuple[int, Tensor]]:
    """Add samples to class means, and yield the number of each class among them with what its scatter gains.

    Args:
        means: changed before the first class is yielded.
        features: (n, D) of the samples.
        labels: (n,) among all classes, known and new; the first new one is the number of those known.
        n_classes: how many classes are added.

    Yields:
        A class, and the matrix (D, D) in fp64 that is added to its scatter about its mean, see :func:`between`.
    """
    total = len(means.counts) + n_classes
    added = sums_of(features, labels, total)
    middle = added.sums / added.counts.clamp(min=1)[:, None]
    apart, weights = between(means, added, torch.arange(total, device=labels.device))
    means.grow(n_classes)
    means.update(features, labels)
    for c in labels.unique().tolist():
        rows = features[labels == c].double() - middle[c]
        yield c, rows.T @ rows + weights[c] * torch.outer(apart[c], apart[c])


def apart_when_joined(means: ClassMeans, labels: Tensor) -> Tensor:
    """Differences (C, D) of the class means to those of the classes that a relabelling joins them into.

    A joined class scatters by ``sum n d d^T`` beyond the scatters of its parts, with n the samples of a part and d its
    difference. It is 0 for a class that joins no other, and for one that is dropped.

    Args:
        means: before the relabelling.
        labels: as in :meth:`ClassMeans.relabel`.
    """
    kept = labels >= 0
    joined = means.sums.new_zeros(int(labels.max()) + 1, means.sums.shape[1]).index_add(
        0, labels[kept], means.sums[kept]
    )
    counts = means.counts.new_zeros(len(joined)).index_add(0, labels[kept], means.counts[kept])
    apart = torch.zeros_like(means.sums)
    apart[kept] = means.sums[kept] / means.counts[kept, None] - (joined / counts[:, None])[labels[kept]]
    return apart
