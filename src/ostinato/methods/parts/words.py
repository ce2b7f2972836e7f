"""Prompts of CLIP-PGP: an image prompt among the tokens, and learned context in class texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, ClipBackbone, Tokens
from ostinato.choices import Options, Share, Size
from ostinato.methods.base import Losses, check_kind
from ostinato.methods.parts.class_texts import ClassTexts
from ostinato.methods.parts.prompts import Prompts


class WordOptions(Options, frozen=True):
    """Options of the image prompt and class texts of CLIP-PGP.

    Attributes:
        length: vectors of the image prompt.
        context: learned context vectors per task in the class texts.
        pgp: share of the energy of old tokens that updates of the image prompt must avoid, in (0, 1]; 0 is off.
    """

    name: Literal["clip_pgp"] = "clip_pgp"
    length: Size = 5
    context: Size = 16
    pgp: Share = 0.0

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Words:  # noqa: ARG002 - of prefixes
        """Make the image prompt of a CLIP model; errors name options under ``where``."""
        return Words(check_kind(f"{where}=clip_pgp", backbone, ClipBackbone), self)


class Words(Prompts):
    """An image prompt shared by all tasks, with a classifier of texts."""

    registered_after: ClassVar[tuple[str, ...]] = ("keys",)
    images: ClassVar[int] = 768
    backbone: ClipBackbone

    def __init__(self, backbone: ClipBackbone, options: WordOptions) -> None:
        backbone.check_joint("clip_pgp")
        super().__init__(backbone, [options.pgp] if options.pgp else [])
        self.context = options.context
        self.prompt = nn.Parameter(torch.randn(options.length, backbone.arch.dim) * 0.02)

    def make_head(self) -> ClassTexts:
        """Classifier of class texts."""
        return ClassTexts(self.backbone, self.context)

    @property
    def first(self) -> int:
        """The prompt is made of tokens."""
        return -1

    def enter(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> tuple[Tokens, Losses]:  # noqa: ARG002 - of pools
        """Tokens with the image prompt, and no loss term."""
        return self.backbone.embed(x).insert(self.backbone.as_tokens(self.prompt)[None], at=1), {}

    def protected(self) -> list[Tensor]:
        """The image prompt."""
        return [self.prompt.detach()]

    def rows(self, x: Tensor) -> list[Tensor]:
        """Tokens of the images and the prompt before the first norm."""
        prompt = self.backbone.placed_prompts(self.prompt)
        return [self.backbone.placed(x).insert(prompt[None]).real()]
