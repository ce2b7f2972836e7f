"""Images to tokens, and the backbone that methods hold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ostinato.backbones.edits import Plan, Tokens
from ostinato.backbones.encoder import Arch, Encoder
from ostinato.errors import InputError


@dataclass(frozen=True)
class Preprocess:
    """How pixels become what the weights were trained on.

    Attributes:
        size: side of the square input in pixels.
        mean: per channel, on the [0, 1] scale.
        std: per channel, on the [0, 1] scale.
        interpolation: "bicubic", "bilinear" or "nearest", used when images are resized.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def unit(self) -> Preprocess:
        """The same without normalisation: pixels in [0, 1], as several public toolboxes feed them."""
        return Preprocess(self.size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.interpolation)


@dataclass(frozen=True)
class Origin:
    """Where weights come from; goes into the record of a run.

    Attributes:
        name: architecture and tag as the user gave them.
        weights: path of the file, or None for weights found by name.
        sha256: hash of the file, or of the tensors where they came by name.
    """

    name: str
    weights: str | None
    sha256: str


class Backbone(nn.Module):
    """A vision transformer in three public steps: ``embed`` -> ``run`` -> ``pool``.

    It is frozen unless a method declares that it trains it. Images enter as uint8 (B, 3, S, S), or as float
    on the [0, 1] scale; normalisation happens here, so that no caller can forget it.

    Args:
        arch: sizes of the encoder.
        patch: side of a patch in pixels.
        preprocess: input size and normalisation.
        origin: where the weights come from.
        readout: "cls" reads the CLS token after the final norm, "mean" averages the patch tokens first and
            normalises then (timm's ``fc_norm``).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: Arch,
        *,
        patch: int,
        preprocess: Preprocess,
        origin: Origin | None = None,
        readout: str = "cls",
    ) -> None:
        super().__init__()
        if preprocess.size % patch:
            raise InputError(f"Backbone: size {preprocess.size} must be a multiple of the patch side {patch}.")
        if readout not in ("cls", "mean"):
            raise InputError(f"Backbone: readout must be 'cls' or 'mean', got {readout!r}.")
        self.arch, self.patch, self.preprocess, self.origin, self.readout = (
            arch,
            patch,
            preprocess,
            origin,
            readout,
        )
        n_patches = (preprocess.size // patch) ** 2
        self.patch_embed = nn.Conv2d(3, arch.dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + n_patches, arch.dim))
        self.encoder = Encoder(arch)
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)

    @property
    def dim(self) -> int:
        """Width D of tokens and features."""
        return self.arch.dim

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights and therefore of the token states."""
        return self.pos_embed.dtype

    def embed(self, images: Tensor) -> Tokens:
        """Patches plus CLS token plus positions.

        Args:
            images: (B, 3, S, S), uint8 in [0, 255] or float in [0, 1].

        Returns:
            Tokens (B, 1 + patches, D), in the precision of the weights.

        Raises:
            InputError: if the images do not have the side that the weights expect.
        """
        size = self.preprocess.size
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise InputError(f"embed: images must be (B, 3, {size}, {size}), got {tuple(images.shape)}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"embed: images must be uint8 in [0, 255] or float in [0, 1], got {images.dtype}.")
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        pixels = ((pixels - self.mean) / self.std).to(self.dtype)
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + self.pos_embed
        return Tokens(h)

    def cls_position(self) -> Tensor:
        """Position vector (D,) of the CLS token, which prompts share where a paper says so (L2P)."""
        return self.pos_embed[0, 0]

    def run(
        self,
        tokens: Tokens,
        plan: Plan | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        read: slice | None = None,
    ) -> Tokens:
        """Layers ``start`` to ``stop`` - 1 with the plan's edits; see :meth:`Encoder.run`."""
        return self.encoder.run(tokens, plan, start=start, stop=stop, read=read)

    def features(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (..., D) of states that enter layer ``start``: the layers left and the model's own read-out.

        The last layer computes nothing but what the read-out needs.
        """
        read = slice(0, 1) if self.readout == "cls" and start < self.arch.depth else None
        return self.pool(self.run(tokens, plan, start=start, read=read))

    def queries(self, layer: int, h: Tensor) -> Tensor:
        """The queries of a layer, see :meth:`Encoder.queries`."""
        return self.encoder.queries(layer, h)

    def pool(self, tokens: Tokens, at: slice | None = None) -> Tensor:
        """Read features out of the states that leave the last layer.

        Args:
            tokens: (..., N, D).
            at: positions to average after the final norm; None for the model's own read-out.

        Returns:
            (..., D) in fp32.
        """
        if at is not None:
            return self.encoder.norm(tokens.h[..., at, :]).float().mean(-2)
        if self.readout == "mean":
            return self.encoder.norm(tokens.h[..., 1:, :].mean(-2)).float()
        return self.encoder.norm(tokens.h[..., 0, :]).float()

    def forward(self, images: Tensor, plan: Plan | None = None) -> Tensor:
        """Features (B, D) of images (B, 3, S, S) under a plan; the three steps in one."""
        return self.features(self.embed(images), plan)

    def cast(self, dtype: torch.dtype) -> Backbone:
        """Store the weights in ``dtype``; normalisation constants stay fp32."""
        for p in self.parameters():
            p.data = p.data.to(dtype)
        return self
