"""CLIP, a model that maps images and texts into one space.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: "Learning Transferable
Visual Models From Natural Language Supervision", ICML 2021, https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones.base import Origin
from ostinato.backbones.edits import Tokens
from ostinato.backbones.encoder import Arch, Encoder
from ostinato.backbones.text import numbered
from ostinato.backbones.vision import Preprocess, VisionBackbone
from ostinato.errors import DataError, InputError
from ostinato.quoting import quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTower(nn.Module):
    """CLIP's causal text encoder, read out at the last token.

    Args:
        arch: sizes of the encoder, which is causal.
        vocabulary: number of known tokens.
        positions: maximum tokens of a text, both ends included.
        joint: width E of the space shared with images.
        tokenizer: of the ``tokenizers`` library; it adds the tokens at both ends.
    """

    def __init__(self, arch: Arch, *, vocabulary: int, positions: int, joint: int, tokenizer: Tokenizer) -> None:
        super().__init__()
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.arch, self.tokenizer = arch, tokenizer
        self.digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        self.words = nn.Embedding(vocabulary, arch.dim)
        self.pos_embed = nn.Parameter(torch.zeros(positions, arch.dim))
        self.encoder = Encoder(arch)
        self.projection = nn.Linear(arch.dim, joint, bias=False)

    def ids(self, texts: Sequence[str], *, room: int = 0) -> Tensor:
        """Token numbers (B, N) of texts, each padded with its last token; ``room`` positions are left free.

        Raises:
            InputError: if a text is too long.
            DataError: if the tokenizer cannot read a text.
        """
        most = len(self.pos_embed) - room
        rows = [
            torch.tensor(numbered(self.tokenizer, text, len(self.words.weight)), dtype=torch.int64) for text in texts
        ]
        for text, row in zip(texts, rows, strict=True):
            if not len(row):
                raise DataError(f"The tokenizer of the weights finds no token in the text {quoted(text)}.")
            if len(row) > most:
                raise InputError(
                    f"The text encoder reads at most {most} tokens, but {quoted(text)} has {len(row)}: "
                    "give the class a shorter name."
                )
        longest = max(len(row) for row in rows)
        return torch.stack([F.pad(row, (0, longest - len(row)), value=int(row[-1])) for row in rows])

    def forward(self, ids: Tensor, context: Tensor | None = None) -> Tensor:
        """Unit-length features (B, E) of texts in the joint space.

        Args:
            ids: token numbers (B, N) of :meth:`ids`.
            context: learned vectors (P, D), inserted after the first token.
        """
        dtype = self.pos_embed.dtype
        words = self.words(ids)
        extra = 0
        if context is not None:
            extra = len(context)
            learned = context.to(dtype).expand(len(ids), -1, -1)
            words = torch.cat([words[:, :1], learned, words[:, 1:]], dim=1)
        # The first of the equal numbers at the end: causal attention hides the padding after it.
        last = (ids == ids[:, -1:]).long().argmax(1) + extra
        h = self.encoder.run(Tokens(words + self.pos_embed[: words.shape[1]])).h
        read = self.encoder.norm(h[torch.arange(len(h), device=h.device), last])
        return F.normalize(self.projection(read).float(), dim=-1)


class ClipBackbone(VisionBackbone):
    """CLIP's image encoder, with its text encoder beside it.

    Methods for images run on it as on any vision transformer: tokens and features have width D, and layers have the
    same numbers. :meth:`joint` maps features into the space of texts.

    Args:
        arch: sizes of the image encoder.
        patch: side of a patch in pixels.
        preprocess: input size and normalisation.
        text: the text encoder.
        joint: width E of the space shared with texts.
        origin: where the weights come from.

    Attributes:
        scale: factor from cosines to logits.
        joint_dim: E.
    """

    kind = "an image-text model (CLIP)"

    scale: Tensor

    def __init__(
        self,
        arch: Arch,
        *,
        patch: int,
        preprocess: Preprocess,
        text: TextTower,
        joint: int,
        origin: Origin | None = None,
    ) -> None:
        super().__init__(arch, patch=patch, preprocess=preprocess, origin=origin)
        self.norm_pre = nn.LayerNorm(arch.dim, eps=arch.eps)
        self.projection = nn.Linear(arch.dim, joint, bias=False)
        self.joint_dim = joint
        self.text = text
        # Not a parameter: it is never trained, and bf16 would round a learned scale.
        self.register_buffer("scale", torch.tensor(100.0))

    def embed(self, x: Tensor) -> Tokens:
        """Patches plus CLS token plus positions, normalised; see :meth:`VisionBackbone.embed`."""
        return Tokens(self.norm_pre(self.placed(x).h))

    def placed(self, x: Tensor) -> Tokens:
        """Patches plus CLS token plus positions, before :meth:`embed` normalises them."""
        return super().embed(x)

    def as_tokens(self, prompts: Tensor) -> Tensor:
        """Prompts (..., P, D) plus the position of the CLS token, normalised as the other tokens."""
        return self.norm_pre(self.placed_prompts(prompts).to(self.dtype))

    def placed_prompts(self, prompts: Tensor) -> Tensor:
        """Prompts plus the position of the CLS token, before :meth:`as_tokens` normalises them."""
        return super().as_tokens(prompts)

    def check_joint(self, what: str) -> None:
        """Make sure that features are those that the projection was trained on.

        Args:
            what: needs them, for the message.

        Raises:
            InputError: if another token than CLS is read.
        """
        if self.readout != "cls":
            raise InputError(
                f"{what} takes the CLS token to the space of texts: backbone.readout must be 'cls', got "
                f"{self.readout!r}. Leave it out."
            )

    def joint(self, features: Tensor) -> Tensor:
        """Map features (..., D) into the space of texts: (..., E), of unit length, in fp32."""
        return F.normalize(F.linear(features.to(self.dtype), self.projection.weight).float(), dim=-1)

    def settings(self) -> tuple[Any, ...]:
        """Settings of a vision transformer, marked as CLIP's."""
        return ("clip", *super().settings())
