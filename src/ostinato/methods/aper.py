"""APER (first called ADAM): class means of the plain encoder beside one that the first task has adapted.

Zhou, Cai, Ye, Zhan, Liu: "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability and
Adaptivity are All You Need", IJCV 2024, https://arxiv.org/abs/2303.07338.

1. Adapt: adapters, prompts or scales and shifts in all layers learn the first task by cross-entropy of a cosine
   classifier, and are then frozen.
2. Merge: ``F(x) = [phi(x); phi*(x)]`` joins the features of the plain encoder and of the adapted one. The prototype of
   a class is the mean of F over its training images; an image gets the class of the prototype with the largest cosine.

Differences from the paper: VPT has prompts in all layers (the paper also tries prompts in the first layer alone). SSF
leaves the embedding of patches and the last norm as they are, and there is no variant that trains the whole encoder.
Pixels are normalised as the weights expect (``preprocess=unit`` restores [0, 1]). A first task of one class adapts
nothing. The recipe is the public code's for CIFAR-100.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.choices import Part
from ostinato.methods.base import Recipe
from ostinato.methods.parts.adaptations import ADAPTATIONS
from ostinato.methods.parts.first_session import FirstSession
from ostinato.nn.proxy import CosineProxy
from ostinato.nn.statistics import NearestMeans
from ostinato.registry import register


@register("aper")
class APER(FirstSession):
    """Class means of joined features of the plain and the adapted encoder.

    Args:
        backbone: the frozen encoder.
        adapt: what learns the first task: "adapter", bottlenecks beside the MLP; "vpt", prompts of all layers; "ssf",
            scales and shifts of all outputs.
    """

    recipe = Recipe(epochs=20, batch_size=48, lr=0.01, optimizer="sgd", weight_decay=5e-4, schedule="cosine_per_epoch")
    scores_are_logits = False

    def __init__(self, backbone: Backbone, *, adapt: Annotated[Part, ADAPTATIONS] = "adapter") -> None:
        super().__init__(backbone)
        self.bank = ADAPTATIONS.read(adapt, "method.adapt").build(backbone)
        self.proxy = CosineProxy(backbone.dim)
        self.head = NearestMeans(2 * backbone.dim)

    def features(self, x: Tensor) -> Tensor:
        """Features F (B, 2 D)."""
        return torch.cat(self.features_under(x, [None, self.bank.plan(0)], 0), dim=-1)

    @property
    def refines(self) -> str:
        """The prototypes."""
        return "its class means; the adapted encoder stays as the first task left it"
