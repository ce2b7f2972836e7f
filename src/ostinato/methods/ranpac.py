"""RanPAC: ridge regression on random projections of frozen features.

McDonnell, Gong, Parvaneh, Abbasnejad, van den Hengel: "RanPAC: Random Projections and Pre-trained Models for Continual
Learning", NeurIPS 2023, https://arxiv.org/abs/2307.02251.

Nothing is trained. A fixed random matrix W, with entries from N(0, 1), widens the frozen feature x of an image to
``h = relu(x W)`` of M numbers. Over all samples seen, the Gram matrix ``G = sum h h^T`` and the cross term
``C = sum h y^T`` with one-hot labels y are kept; the scores are ``h (G + l I)^-1 C``.

Differences from the paper: features are scaled to one length. The penalty l is chosen after every task by generalised
cross-validation on the sums over all samples seen, where the paper sets a fifth of the current task's samples aside;
order and tasks then have no influence. M is 10 per number of a feature up to the paper's 10,000. There is no adaptation
on the first task (the paper's phase 1). Sums are fp64.

ACIL (Zhuang et al., NeurIPS 2022, https://arxiv.org/abs/2205.14922) updates the inverse of ``G + l I`` task by task
instead of G. For the same random features and penalty its weights are the same, so that it is no method of its own.
"""

from __future__ import annotations

import math

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.parts.closed_form import ClosedForm
from ostinato.nn.ridge import RandomRidge, random_width
from ostinato.registry import register


@register("ranpac")
class RanPAC(ClosedForm):
    """Ridge regression on random features.

    Args:
        backbone: the frozen encoder.
        n_random: M, random features; None for 10 per number of a feature, 10,000 at most. The Gram matrix takes
            8 M^2 bytes.
        penalty: l; None for generalised cross-validation over 1e-2 to 1e8 after every task.
    """

    def __init__(self, backbone: Backbone, *, n_random: int | None = None, penalty: float | None = None) -> None:
        wide = random_width(backbone.dim, n_random, most=10_000)
        if penalty is not None and not 0 < penalty < math.inf:
            raise InputError(f"method.penalty must be a positive number or left out, got {penalty}.")
        super().__init__(backbone, RandomRidge(backbone.dim, wide, penalty))
