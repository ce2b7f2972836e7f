"""Ridge regression on random features, kept as sums that add."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError
from ostinato.nn.growing import Growing
from ostinato.nn.shifted import ShiftedGram
from ostinato.nn.statistics import ClassMeans

SCALE = 20.0
"""Length of a feature before the projection; as ReLU is homogeneous, another one only changes the unit of penalties."""

PENALTIES = tuple(10.0**k for k in range(8, -3, -1))
"""From which cross-validation chooses, the largest first. A cap at 1e4 is far too small for thousands of features."""

PROBES = 32
"""Random signs per feature that estimate a trace."""

CERTAIN = 10
"""Standard errors by which residual degrees of freedom must differ from 0."""

PER_NUMBER = 10
"""Random features per number of a feature."""

_ROWS = 1024


def random_width(dim: int, n_random: int | None, most: int) -> int:
    """Number of random features of features (D,): the given one, else 10 D and at most ``most``.

    Raises:
        InputError: if the given number is below 1.
    """
    if n_random is not None and n_random < 1:
        raise InputError(f"method.n_random must be at least 1, got {n_random}.")
    return min(PER_NUMBER * dim, most) if n_random is None else n_random


class RandomRidge(Growing):
    """A linear classifier of ``h = relu(20 x / |x| W)``, fitted to one-hot labels under a squared penalty.

    The weights ``(G + l I)^-1 C`` depend on the samples through the Gram matrix ``G = H^T H`` and the cross term
    ``C = H^T Y`` alone. Both are sums over samples, so that neither order nor cuts into tasks matter, and those of two
    learners add.

    Args:
        dim: width D of features.
        n_random: M, random features. W (D, M) has entries from N(0, 1), drawn from torch's global generator.
        penalty: l; None for generalised cross-validation.
        below: whether the next smaller penalty than the best by cross-validation is taken, where it can be.

    Attributes:
        classes: sums of h per class, which are C, and counts.
        chosen: penalty of the weights; 0 before any.
    """

    shared = "Gram matrix"
    projection: Tensor
    gram: Tensor
    weight: Tensor
    chosen: Tensor

    def __init__(self, dim: int, n_random: int, penalty: float | None = None, *, below: bool = False) -> None:
        super().__init__()
        self.penalty, self.below = penalty, below
        self.register_buffer("projection", torch.randn(dim, n_random))
        self.classes = ClassMeans(n_random)
        self.register_buffer("gram", torch.zeros(n_random, n_random, dtype=torch.float64))
        # What follows from the sums, kept because solving for it takes longer than scoring a batch.
        self.register_buffer("weight", torch.zeros(0, n_random))
        self.register_buffer("chosen", torch.zeros((), dtype=torch.float64))

    def __len__(self) -> int:
        """Classes known."""
        return len(self.classes.counts)

    def hidden(self, features: Tensor) -> Tensor:
        """Random features (B, M) of features (B, D), in their precision."""
        return (SCALE * F.normalize(features, dim=-1) @ self.projection.to(features.dtype)).relu()

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes.

        Args:
            features: (n, D) of the samples.
            labels: (n,) among all classes, known and new; the first new one is ``len(self)``.
            n_classes: how many classes are added.
        """
        self.classes.grow(n_classes)
        for rows, of in zip(features.split(_ROWS), labels.split(_ROWS), strict=True):
            # In fp64: rounding of sums in fp32 would show under small penalties, and depend on the order.
            h = self.hidden(rows.double())
            self.gram.addmm_(h.T, h)
            self.classes.update(h, of)
        self.fit()

    @torch.no_grad()
    def merge(self, other: RandomRidge, labels: Tensor) -> None:
        """Add the sums of another one.

        Args:
            other: with the same projection and penalty.
            labels: (classes of the other,) their numbers here; numbers beyond ``len(self)`` are new classes.

        Raises:
            InputError: if the projections differ.
        """
        if not torch.equal(self.projection, other.projection):
            raise InputError(
                "merge: the random projections differ, so that sums over random features do not add. Learn both with "
                "the same seed and method.n_random."
            )
        self.classes.merge(other.classes, labels)
        self.gram = self.gram + other.gram
        self.fit()

    @torch.no_grad()
    def forget(self, features: Tensor, label: int) -> None:
        """Subtract a class from the Gram matrix, given the features (n, D) of all its samples.

        Raises:
            InputError: if they are not those learned.
        """
        h = self.hidden(features.double())
        self.classes.check_all(label, h)
        self.gram = self.gram - h.T @ h

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, (C,) in [0, C) or -1; classes of one number are joined, -1 drops a class.

        The samples of a dropped class stay in the Gram matrix with the target 0, unless :meth:`forget` took them away.
        Cross-validation does not count them.
        """
        self.classes.relabel(labels)
        self.fit()

    def fit(self) -> None:
        """Solve for the weights.

        Raises:
            InputError: if the penalty that was given leaves the Gram matrix singular.
        """
        n = int(self.classes.counts.sum())
        system = ShiftedGram(self.gram, n)
        if self.penalty is None:
            weight, penalty = self._cross_validated(system)
        else:
            weight, penalty = system.solve(self.penalty, self.classes.sums.T), self.penalty
            if weight is None:
                raise InputError(
                    f"method.penalty={penalty:g} leaves the Gram matrix of {n} samples singular. Give a larger one, or "
                    "leave it out."
                )
        self.weight = weight.T.float().contiguous()
        self.chosen = self.chosen.new_tensor(penalty)

    def _cross_validated(self, system: ShiftedGram) -> tuple[Tensor, float]:
        """Weights (M, C) under the penalty of the first minimum of :meth:`_validation` from above, and the penalty.

        With ``below``, it is the penalty after the minimum, unless its fit all but repeats the samples.

        The smoothest of several fits that explain the samples as well is the safest, and small penalties, which take as
        long, are not tried in vain. The choice depends on the sums alone.
        """
        value, weight = self._validation(system, PENALTIES[0])
        chosen = PENALTIES[0]
        for penalty in PENALTIES[1:]:
            lower, found = self._validation(system, penalty)
            if not lower < value:
                if self.below and lower < math.inf:
                    weight, chosen = found, penalty
                break
            value, weight, chosen = lower, found, penalty
        return weight, chosen

    def _validation(self, system: ShiftedGram, penalty: float) -> tuple[float, Tensor]:
        """Generalised cross-validation of a penalty, ``n RSS / (n - d)^2``, and the weights (M, C).

        Golub, Heath, Wahba: "Generalized Cross-Validation as a Method for Choosing a Good Ridge Parameter",
        Technometrics 1979. d is the trace of the hat matrix, ``tr((G + l I)^-1 G)``, estimated with random signs
        (Hutchinson 1990) over features, not samples, so that it depends on G alone.

        Returns:
            Infinity where n - d is within the error of its estimate, since the fit then all but repeats the samples,
            or where the matrix is singular.
        """
        cross, n, m = self.classes.sums.T, int(self.classes.counts.sum()), len(self.gram)
        signs = torch.randint(0, 2, (m, PROBES), generator=torch.Generator().manual_seed(m)).to(cross) * 2 - 1
        solved = system.solve(penalty, torch.cat([cross, signs], dim=1))
        if solved is None:
            return math.inf, cross
        weight, inverse = solved.split([len(self), PROBES], 1)
        degrees = m - penalty * float((signs * inverse).sum()) / PROBES
        # The variance of the estimate is at most 2 d / PROBES, as no eigenvalue of the hat matrix exceeds 1.
        if n - degrees < CERTAIN * math.sqrt(2 * max(degrees, 0.0) / PROBES):
            return math.inf, weight
        # G weight = C - l weight: no further product of the size of G.
        residual = n - float((weight * cross).sum()) - penalty * float(weight.square().sum())
        return n * residual / (n - degrees) ** 2, weight

    def forward(self, features: Tensor) -> Tensor:
        """Fitted labels (B, C) of features (B, D), around 1 for a class that is sure and around 0 for others."""
        with torch.autocast(features.device.type, enabled=False):
            return self.hidden(features.float()) @ self.weight.T
