"""Duet: ridge regression and class Gaussians on the plain encoder beside one that the first task has adapted.

A method of this project, from published parts. It trains where training was found to pay, and is closed-form elsewhere:

1. First-session adaptation (Panos, Kobe, Reino, Aljundi, Turner: "First Session Adaptation: A Strong Replay-Free
   Baseline for Class-Incremental Learning", ICCV 2023, https://arxiv.org/abs/2303.13199): low-rank updates ``B A`` of
   queries and values in the upper half of the layers (Hu et al., ICLR 2022, https://arxiv.org/abs/2106.09685) learn the
   first task, through a cosine classifier that starts at the class means, and are then frozen. In training a random
   share of the patches is left out.
2. Both encoders are read: ``f = [phi(x; 0); phi(x; B A)]``, each part of length 1. Without ``backbone.readout``, phi
   joins the first token and the mean (cls+mean).
3. Ridge regression on random features of f, as in RanPAC (McDonnell et al., NeurIPS 2023,
   https://arxiv.org/abs/2307.02251), with a penalty by generalised cross-validation; see ``nn/ridge.py``.
4. From its scores is subtracted ``(d^2 + log det S_c) / K``, the squared Mahalanobis distance to the mean of each class
   and the log-determinant of its covariance S_c per number, of a random projection of f to K numbers. S_c lies between
   the covariance of the class and the shared one, as in regularised discriminant analysis (Friedman, Journal of the
   American Statistical Association 1989); see ``nn/quadratic.py``. K is the same beside every encoder, and so is the
   room that a class takes. Beside this term, the next smaller penalty than the best of the regression alone is taken.

After the first task nothing is trained, so that the cost of a task depends on its images alone, and the order of later
tasks has no influence.

Differences from the paper: there is none of this combination. First-session adaptation has no plain encoder beside the
adapted one and ends in linear discriminant analysis; RanPAC adapts all layers, with larger updates and crops; neither
has a covariance per class.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone, LayerPlan, Tokens
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Recipe, check_layers, check_positive
from ostinato.methods.parts.banks import LowRank
from ostinato.methods.parts.first_session import FirstSession
from ostinato.nn.proxy import CosineProxy
from ostinato.nn.quadratic import QuadraticDiscriminant
from ostinato.nn.ridge import RandomRidge, random_width
from ostinato.nn.ridge_gaussians import RidgeAndGaussians
from ostinato.nn.statistics import sums_of
from ostinato.registry import register

MAPS = ("q", "v")
KEEP = 0.5
"""Default share of patches in a training step."""

SCALE = 20.0
"""Of the cosine classifier at the start."""

N_GAUSSIAN = 256
"""Most numbers of a Gaussian unless the user says how many."""


@register("duet")
class Duet(FirstSession):
    """Ridge regression and class Gaussians on the plain and the adapted encoder.

    Args:
        backbone: the frozen encoder.
        encoders: which encoders are read: "both"; "adapted" alone, which without Gaussians is RanPAC with its first
            phase; "plain" alone, RanPAC without it.
        layers: layers with updates, from 0; None for the upper half.
        rank: of an update.
        keep: share of an image's patches that a training step reads; None for half. Texts are always read whole.
        n_random: random features; None for 10 per number of a feature, 4,000 at most. The Gram matrix takes
            8 n_random^2 bytes.
        n_gaussian: K, numbers of a Gaussian, of which a class takes 4 K^2 bytes; None for 256, at most the numbers of
            a feature; 0 for ridge regression alone.
    """

    recipe = Recipe(epochs=8, batch_size=32, lr=2e-3, optimizer="adamw", schedule="cosine")
    default_readout = "cls+mean"
    no_effect: ClassVar = {option: ("encoders", ("plain",)) for option in ("layers", "rank", "keep")}

    def __init__(
        self,
        backbone: Backbone,
        *,
        encoders: Literal["both", "adapted", "plain"] = "both",
        layers: tuple[int, ...] | None = None,
        rank: int = 16,
        keep: float | None = None,
        n_random: int | None = None,
        n_gaussian: int | None = None,
    ) -> None:
        super().__init__(backbone)
        check_positive(rank=rank)
        if keep is not None and not 0 < keep <= 1:
            raise InputError(f"method.keep must lie in (0, 1], got {keep}.")
        if keep is not None and backbone.modality != "image":
            raise InputError(f"method.keep={keep} has no effect on texts, which are read whole: leave it out.")
        depth = backbone.arch.depth
        self.layers = check_layers("layers", tuple(range(depth // 2, depth)) if layers is None else layers, depth)
        if not self.layers:
            raise InputError("method.layers must name a layer. To adapt none, give method.encoders=plain.")
        self.encoders, self.adapts = encoders, encoders != "plain"
        self.keep, self.entry = KEEP if keep is None else keep, min(self.layers)
        # A is large beside its steps, so that B learns on random directions.
        self.bank = LowRank(backbone.arch, self.layers, MAPS, rank, 1.0, bound=(3 / backbone.arch.dim) ** 0.5)
        self.proxy = CosineProxy(backbone.dim)
        n_features = 2 * backbone.dim if encoders == "both" else backbone.dim
        size = min(N_GAUSSIAN, n_features) if n_gaussian is None else n_gaussian
        if not 0 <= size <= n_features:
            raise InputError(f"method.n_gaussian must lie in [0, {n_features}], the numbers of a feature, got {size}.")
        wide = random_width(n_features, n_random, most=4_000)
        ridge = RandomRidge(n_features, wide, below=size > 0)
        self.head = RidgeAndGaussians(ridge, QuadraticDiscriminant(n_features, size)) if size else ridge

    def prepare(self, task: LearnTask) -> None:
        """Begin the classifier at the class means of the plain encoder."""
        means = sums_of(*task.extract_features(self.query), len(task.classes))
        self.proxy.weight.copy_(F.normalize(means.means(), dim=-1))
        self.proxy.scale.fill_(SCALE)

    def adapted(self, x: Tensor) -> Tensor:
        """Features (B, D) of a random share of each batch's patches, under the updates."""
        tokens = self.states(x, self.entry)
        if self.keep < 1 and self.backbone.modality == "image":
            tokens = some_of(tokens, self.keep)
        return self.backbone.features(tokens, self.bank.plan(0), start=self.entry)

    def features(self, x: Tensor) -> Tensor:
        """Features f of inputs: (B, 2 D), or (B, D) of one encoder."""
        plans: list[LayerPlan | None] = [] if self.encoders == "adapted" else [None]
        if self.encoders != "plain":
            plans.append(self.bank.plan(0))
        return torch.cat([F.normalize(f, dim=-1) for f in self.features_under(x, plans, self.entry)], dim=-1)

    @property
    def refines(self) -> str:
        """The closed form."""
        return "its closed form, exactly; the adapted encoder stays as the first task left it"


def some_of(tokens: Tokens, share: float) -> Tokens:
    """The first token and a random share of the others, the same ones for the whole batch."""
    n = tokens.h.shape[-2] - 1
    places = 1 + torch.randperm(n, device=tokens.h.device)[: max(1, round(share * n))]
    return Tokens(torch.cat([tokens.h[..., :1, :], tokens.h[..., places, :]], dim=-2))
