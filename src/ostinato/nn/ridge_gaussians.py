"""Ridge regression beside a Gaussian per class."""

from __future__ import annotations

from torch import Tensor

from ostinato.nn.growing import Growing
from ostinato.nn.quadratic import QuadraticDiscriminant
from ostinato.nn.ridge import RandomRidge


class RidgeAndGaussians(Growing):
    """Fitted labels of a ridge regression, less the squared distance to the mean of every class per number.

    The distance is that of a Gaussian of K numbers, ``(d^2 + log det)/K``. A ridge regression finds what separates the
    classes, a Gaussian how each of them varies. Neither depends on the other, and their weights are fixed: the values
    depend on the samples through sums over them alone.

    Args:
        ridge: on random features. Beside another part, a smaller penalty than the best of it alone pays: Sollich,
            Krogh: "Learning with Ensembles: How Over-fitting Can Be Useful", NIPS 1995.
        gaussians: of K numbers.
    """

    shared = RandomRidge.shared

    def __init__(self, ridge: RandomRidge, gaussians: QuadraticDiscriminant) -> None:
        super().__init__()
        self.ridge, self.gaussians = ridge, gaussians

    def __len__(self) -> int:
        """Classes known."""
        return len(self.ridge)

    def add(self, features: Tensor, labels: Tensor, n_classes: int) -> None:
        """Add samples, and the next ``n_classes`` classes, see :meth:`RandomRidge.add`."""
        self.ridge.add(features, labels, n_classes)
        self.gaussians.add(features, labels, n_classes)

    def merge(self, other: RidgeAndGaussians, labels: Tensor) -> None:
        """Add the sums of another one, see :meth:`RandomRidge.merge`."""
        self.ridge.merge(other.ridge, labels)
        self.gaussians.merge(other.gaussians, labels)

    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number, see :meth:`RandomRidge.relabel`."""
        self.ridge.relabel(labels)
        self.gaussians.relabel(labels)

    def forget(self, features: Tensor, label: int) -> None:
        """Subtract a class from the Gram matrix, see :meth:`RandomRidge.forget`."""
        self.ridge.forget(features, label)

    def forward(self, features: Tensor) -> Tensor:
        """Values (B, C) of features (B, D) for every class."""
        return self.ridge(features) + 2 / self.gaussians.size * self.gaussians(features)
