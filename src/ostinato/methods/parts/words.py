"""Prompts on CLIP: vectors among the tokens of every image, and learned words in the texts of the classes."""

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
    """The image prompt and class texts of CLIP-PGP.

    Attributes:
        length: vectors of the image prompt.
        context: learned vectors in the texts of a task.
        pgp: share of the energy of old tokens that updates of the image prompt must leave alone, in (0, 1]; 0 is off.
    """

    name: Literal["clip_pgp"] = "clip_pgp"
    length: Size = 10
    context: Size = 16
    pgp: Share = 0.0

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Words:  # noqa: ARG002 - of prefixes
        """The image prompt on a CLIP model; options stand under ``where`` in messages."""
        return Words(check_kind(f"{where}=clip_pgp", backbone, ClipBackbone), self)


class Words(Prompts):
    """An image prompt that all tasks share; the classifier is made of texts.

    Args:
        backbone: a CLIP model.
        options: of the prompt and the texts.
    """

    registered_after: ClassVar[tuple[str, ...]] = ("keys",)
    images: ClassVar[int] = 768
    backbone: ClipBackbone

    def __init__(self, backbone: ClipBackbone, options: WordOptions) -> None:
        backbone.check_joint("clip_pgp")
        super().__init__(backbone, [options.pgp] if options.pgp else [])
        self.context = options.context
        self.prompt = nn.Parameter(torch.randn(options.length, backbone.arch.dim) * 0.02)

    def make_head(self) -> ClassTexts:
        """The texts of the classes."""
        return ClassTexts(self.backbone, self.context)

    @property
    def first(self) -> int:
        """The prompt stands among the tokens."""
        return -1

    def enter(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> tuple[Tokens, Losses]:  # noqa: ARG002 - of pools
        """States that enter layer 0 with the image prompt, and no loss term."""
        return self.backbone.embed(x).insert(self.backbone.as_tokens(self.prompt)[None], at=1), {}

    def protected(self) -> list[Tensor]:
        """The image prompt."""
        return [self.prompt.detach()]

    def rows(self, x: Tensor) -> list[Tensor]:
        """The tokens of the images, the prompt among them, before the first norm."""
        prompt = self.backbone.placed_prompts(self.prompt)
        return [self.backbone.placed(x).insert(prompt[None]).real()]
