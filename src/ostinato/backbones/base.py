"""Base class of backbones of every modality."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones.edits import Plan, Tokens
from ostinato.backbones.encoder import Arch, Encoder
from ostinato.errors import InputError
from ostinato.quoting import quoted

READOUTS = ("cls", "mean", "cls+mean")


@dataclass(frozen=True)
class Origin:
    """Origin of weights, for the record of a run.

    Attributes:
        name: architecture and tag as given by the user.
        weights: path of the file, or None for weights found by name.
        sha256: hash of the file, or of the tensors where they came by name.
    """

    name: str
    weights: str | None
    sha256: str


class Backbone(nn.Module):
    """A transformer in three public steps: ``embed`` -> ``run`` -> ``pool``.

    It is frozen unless a method declares that it trains it. A subclass adds the layers before the encoder.

    Args:
        arch: sizes of the encoder.
        readout: "cls" reads the first token after the last layer, "mean" averages the content tokens of the modality,
            "cls+mean" joins both, each of length 1.
        origin: where the weights come from.

    Attributes:
        modality: of the inputs of ``embed``: "image" or "text".
        kind: name of the kind of backbone in messages.
    """

    modality: ClassVar[str]
    kind: ClassVar[str] = "an encoder of images or texts"

    def __init__(self, arch: Arch, *, readout: str = "cls", origin: Origin | None = None) -> None:
        super().__init__()
        self.arch, self.readout, self.origin = arch, check_readout(readout), origin
        self.encoder = Encoder(arch)

    @property
    def dim(self) -> int:
        """Width D of features: that of tokens, ``arch.dim``, and twice as much for the read-out "cls+mean"."""
        return 2 * self.arch.dim if self.readout == "cls+mean" else self.arch.dim

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights and therefore of the token states."""
        return next(self.encoder.parameters()).dtype

    @abstractmethod
    def embed(self, x: Tensor) -> Tokens:
        """Embed inputs as the token states (B, N, D) that enter layer 0, in the precision of the weights."""

    @abstractmethod
    def as_tokens(self, prompts: Tensor) -> Tensor:
        """Embed prompts (..., P, width) as tokens that enter layer 0 at the position of the first token."""

    @abstractmethod
    def average(self, tokens: Tokens) -> Tensor:
        """Feature (..., width) of the read-out "mean"."""

    @abstractmethod
    def contents(self, x: Tensor) -> list[Any]:
        """Content of each input as an array of bytes, independent of its batch; equal inputs have equal contents."""

    @abstractmethod
    def settings(self) -> tuple[Any, ...]:
        """Settings on which features depend, beside weights, precision and device."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able settings on which features depend, beside the weights: preprocessing and read-out."""

    def run(
        self,
        tokens: Tokens,
        plan: Plan | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        read: slice | None = None,
    ) -> Tokens:
        """Run layers ``start`` to ``stop`` - 1 with the plan's edits; see :meth:`Encoder.run`."""
        return self.encoder.run(tokens, plan, start=start, stop=stop, read=read)

    def features(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (..., D) of states that enter layer ``start``: the remaining layers and the model's own read-out.

        The last layer computes only the positions that the read-out needs.
        """
        read = slice(0, 1) if self.readout == "cls" and start < self.arch.depth else None
        return self.pool(self.run(tokens, plan, start=start, read=read))

    def queries(self, layer: int, h: Tensor) -> Tensor:
        """Queries of a layer, see :meth:`Encoder.queries`."""
        return self.encoder.queries(layer, h)

    def attention_input(self, layer: int, h: Tensor) -> Tensor:
        """Input of a layer's attention, see :meth:`Encoder.attention_input`."""
        return self.encoder.attention_input(layer, h)

    def keys_values(self, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, see :meth:`Encoder.keys_values`."""
        return self.encoder.keys_values(layer, h)

    def pool(self, tokens: Tokens, at: slice | None = None) -> Tensor:
        """Read features out of the states that leave the last layer.

        Args:
            tokens: (..., N, width).
            at: positions to average after the final norm; None for the model's own read-out.

        Returns:
            (..., D) in fp32; of width ``arch.dim`` where positions are given.
        """
        if at is not None:
            return self.encoder.norm(tokens.h[..., at, :]).float().mean(-2)
        if self.readout == "mean":
            return self.average(tokens)
        cls = self.encoder.norm(tokens.h[..., 0, :]).float()
        if self.readout == "cls":
            return cls
        return torch.cat([F.normalize(cls, dim=-1), F.normalize(self.average(tokens), dim=-1)], dim=-1)

    def forward(self, x: Tensor, plan: Plan | None = None) -> Tensor:
        """Features (B, D) of inputs under a plan: embed, run and pool."""
        return self.features(self.embed(x), plan)

    def cast(self, dtype: torch.dtype) -> Self:
        """Store the weights in ``dtype``; normalisation constants stay fp32."""
        for p in self.parameters():
            p.data = p.data.to(dtype)
        return self


def check_readout(readout: str) -> str:
    """The name of a read-out.

    Raises:
        InputError: if there is none of that name.
    """
    if readout not in READOUTS:
        raise InputError(f"backbone.readout must be one of {list(READOUTS)}, got {quoted(readout)}.")
    return readout
