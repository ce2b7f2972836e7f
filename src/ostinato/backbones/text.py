"""Text backbones and their tokenisation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ostinato.backbones.base import Backbone, Origin
from ostinato.backbones.edits import Tokens
from ostinato.backbones.encoder import Arch
from ostinato.backbones.words import of_tokenizers
from ostinato.errors import DataError, InputError
from ostinato.quoting import quoted

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class Tokenization:
    """Tokenisation that the weights were trained with.

    Attributes:
        tokenizer: of the ``tokenizers`` library; it adds the tokens at both ends, and neither cuts nor fills up.
        length: maximum tokens of a text, both ends included; longer texts lose their end.
        pad: number of the padding token; no text contains it.
        vocabulary: number of words of the weights; None where the tokenizer is known to have no others.
        digest: of the vocabulary and rules.
    """

    tokenizer: Tokenizer = field(repr=False, compare=False)
    length: int
    pad: int
    vocabulary: int | None = None
    digest: str = field(default="", init=False)

    def __post_init__(self) -> None:
        """Disable truncation and padding of the tokenizer, and hash it.

        Raises:
            InputError: if the length leaves no room for a token, or the weights have no word for padding.
        """
        if self.vocabulary is not None and self.pad >= self.vocabulary:
            raise InputError(
                f"backbone: the padding token {self.pad} must be one of the {self.vocabulary} words of the weights."
            )
        if self.length < 3:
            raise InputError(f"backbone.length must be at least 3, with a token at each end, not {self.length}.")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        digest = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        object.__setattr__(self, "digest", digest)

    def count(self, text: str) -> int:
        """Number of tokens of a whole text, both ends included."""
        return len(self._encode(text))

    def encode(self, text: str) -> Tensor:
        """Token numbers (n,) of a text, n at most ``length``; tokens before the last one are cut."""
        ids = self._encode(text)
        if len(ids) > self.length:
            ids = [*ids[: self.length - 1], ids[-1]]
        return torch.tensor(ids, dtype=torch.int64)

    def join(self, texts: list[Tensor]) -> Tensor:
        """Join encoded texts into a batch (B, N), padded to the longest."""
        return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=self.pad)

    def _encode(self, text: str) -> list[int]:
        # "[PAD]" in a text is three words. Copies in other processes forget the setting, so it is repeated here. Where
        # the vocabulary has it as a word, the text loses it: padding is invisible.
        self.tokenizer.encode_special_tokens = True
        return [i for i in numbered(self.tokenizer, text, self.vocabulary) if i != self.pad]


def numbered(tokenizer: Tokenizer, text: str, vocabulary: int | None) -> list[int]:
    """Token numbers of a whole text, all below ``vocabulary`` if given.

    Raises:
        DataError: if the tokenizer cannot read the text, or a token is not among the words of the weights.
    """
    try:
        ids = tokenizer.encode(text).ids
    except BaseException as error:  # of damaged rules, such as no word for unknown words
        if not of_tokenizers(error):
            raise
        raise DataError(f"The tokenizer of the weights cannot read the text {quoted(text)}: {error}.") from error
    if vocabulary is not None and ids and max(ids) >= vocabulary:
        raise DataError(
            f"The tokenizer finds token {max(ids)} in the text {quoted(text)}, but the weights have {vocabulary} "
            "words: take the tokenizer that belongs to them."
        )
    return ids


class TextBackbone(Backbone):
    """A BERT-like encoder: learned positions, normalised embeddings, layers that normalise after their branches.

    Texts enter as token numbers (B, N), padded with ``tokenization.pad``; padding is invisible.

    Args:
        arch: sizes of the encoder; its norm is "post".
        vocabulary: number of known tokens.
        positions: rows of the position table.
        tokenization: of the weights.
        first_position: row of the first token's position (in RoBERTa, after the number of the padding token).
        readout: "cls" reads the first token, "mean" averages all tokens of the text, both ends included, "cls+mean"
            joins both, each of length 1.
        origin: where the weights come from.
    """

    modality = "text"
    kind = "a text encoder"

    def __init__(
        self,
        arch: Arch,
        *,
        vocabulary: int,
        positions: int,
        tokenization: Tokenization,
        first_position: int = 0,
        readout: str = "cls",
        origin: Origin | None = None,
    ) -> None:
        super().__init__(arch, readout=readout, origin=origin)
        if tokenization.length > positions - first_position:
            raise InputError(
                f"backbone.length must be at most {positions - first_position}, the positions of these weights; got "
                f"{tokenization.length}."
            )
        self.tokenization, self.first_position = tokenization, first_position
        self.words = nn.Embedding(vocabulary, arch.dim)
        self.pos_embed = nn.Parameter(torch.zeros(positions, arch.dim))
        self.segment = nn.Parameter(torch.zeros(arch.dim))
        self.norm = nn.LayerNorm(arch.dim, eps=arch.eps)

    def embed(self, x: Tensor) -> Tokens:
        """Words plus positions plus the segment, normalised.

        Args:
            x: token numbers (B, N), int64, padded at the end.

        Returns:
            Tokens (B, N, D), in the precision of the weights, with a mask where there is padding.

        Raises:
            InputError: if the numbers have another dtype or shape, or are too many.
        """
        most = len(self.pos_embed) - self.first_position
        if x.ndim != 2 or x.dtype != torch.int64 or x.shape[1] > most:
            raise InputError(
                f"embed: texts must be token numbers (B, N) in int64 with N at most {most}, got {x.dtype} of shape "
                f"{tuple(x.shape)}."
            )
        real = x != self.tokenization.pad
        places = self.pos_embed[self.first_position : self.first_position + x.shape[1]]
        h = self._normed(self.words(x) + places)
        return Tokens(h, None if bool(real.all()) else real)

    def _normed(self, h: Tensor) -> Tensor:
        return self.norm(h + self.segment)

    def as_tokens(self, prompts: Tensor) -> Tensor:
        """Prompts (..., P, D) instead of words, at the position of the first token."""
        return self._normed(prompts.to(self.dtype) + self.pos_embed[self.first_position])

    def average(self, tokens: Tokens) -> Tensor:
        """Mean of the visible tokens."""
        h = self.encoder.norm(tokens.h).float()
        if tokens.mask is None:
            return h.mean(-2)
        seen = tokens.mask[..., None]
        return (h * seen).sum(-2) / seen.sum(-2)

    def contents(self, x: Tensor) -> list[Any]:
        """Token numbers of each text, without padding."""
        return [row[row != self.tokenization.pad].numpy() for row in x.cpu()]

    def settings(self) -> tuple[Any, ...]:
        """Sizes and read-out."""
        return (self.arch, self.readout, self.first_position)

    def describe(self) -> dict[str, Any]:
        """Length, vocabulary and read-out."""
        return {
            "length": self.tokenization.length,
            "tokenizer": self.tokenization.digest,
            "first_position": self.first_position,
            "readout": self.readout,
        }
