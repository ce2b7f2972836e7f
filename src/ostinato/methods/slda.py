"""SLDA: streaming linear discriminant analysis on frozen features.

Hayes, Kanan: "Lifelong Machine Learning with Deep Streaming Linear Discriminant Analysis", CVPR Workshops 2020,
https://arxiv.org/abs/1909.01520.

Nothing is trained. A class is a Gaussian of the frozen features of its training images; all classes share one
covariance S. The score of class c with mean m_c is the log-likelihood ``m_c^T S^-1 x - m_c^T S^-1 m_c / 2``, up to a
number that is the same for all classes. What is kept are the sums, counts and one scatter matrix.

Differences from the paper: the samples of a task are added at once, about the final means of their classes, where the
paper updates means and covariance sample by sample; the result does not depend on the order. The covariance is shrunk
by as much as the number of samples calls for (OAS), where the paper adds 1e-4 of the identity; see
``nn/discriminant.py``. The first task is not treated apart.
"""

from __future__ import annotations

from ostinato.backbones import Backbone
from ostinato.methods.parts.closed_form import ClosedForm
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.registry import register


@register("slda")
class SLDA(ClosedForm):
    """Linear discriminant analysis with one covariance for all classes."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone, LinearDiscriminant(backbone.dim))
