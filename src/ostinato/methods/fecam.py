"""FeCAM: nearest class mean under the normalised covariance of each class.

Goswami, Liu, Twardowski, van de Weijer: "FeCAM: Exploiting the Heterogeneity of Class Distributions in Exemplar-Free
Continual Learning", NeurIPS 2023, https://arxiv.org/abs/2309.14062.

Nothing is trained. The covariance of the frozen features of every class is shrunk, ``cov + g1 v1 I + g2 v2 (1 - I)``
with v1 the mean of its diagonal and v2 that of its other entries (eq. 8), and divided by the standard deviations,
``S_ij / sqrt(S_ii S_jj)`` (eq. 7), so that classes can be compared. An image belongs to the class with the smallest
squared Mahalanobis distance (eq. 6).

Differences from the paper: Tukey's transformation, ``x^t`` (eq. 9), is meant for features that are not negative; on a
transformer's it is off by default as in the paper, and where it is on the power is taken of the absolute value and the
sign stays. Features are scaled to length 1 after it, as in the public code for transformers, whose g1 = 1 and g2 = 0
are the defaults.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.parts.closed_form import ClosedForm
from ostinato.nn.mahalanobis import ClassMahalanobis
from ostinato.registry import register


@register("fecam")
class FeCAM(ClosedForm):
    """Mahalanobis distances with a covariance per class.

    Args:
        backbone: the frozen encoder.
        gamma1: weight of the mean variance that is added to every variance, g1; positive.
        gamma2: weight of the mean covariance that is added to every covariance, g2; at most ``gamma1``.
        tukey: exponent of Tukey's transformation, in (0, 1]; 1 is off.
    """

    def __init__(self, backbone: Backbone, *, gamma1: float = 1.0, gamma2: float = 0.0, tukey: float = 1.0) -> None:
        if not (0 < gamma1 < math.inf and 0 <= gamma2 <= gamma1):
            raise InputError(
                f"method.gamma1 must be positive and method.gamma2 in [0, gamma1], got {gamma1} and {gamma2}."
            )
        if not 0 < tukey <= 1:
            raise InputError(f"method.tukey must lie in (0, 1], got {tukey}.")
        super().__init__(backbone, ClassMahalanobis(backbone.dim, gamma1=gamma1, gamma2=gamma2))
        self.tukey = tukey

    def features(self, x: Tensor) -> Tensor:
        """Transformed features (B, D) of length 1."""
        plain = self.query(x).float()
        powered = plain if self.tukey == 1 else torch.sign(plain) * plain.abs() ** self.tukey
        return F.normalize(powered, dim=-1)

    def scores(self, x: Tensor) -> Tensor:
        """Negative squared distance (B, n_seen) to every class mean."""
        return -super().scores(x)
