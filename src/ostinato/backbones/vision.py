"""Vision backbones and their preprocessing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.backbones.base import Backbone, Origin
from ostinato.backbones.edits import Tokens
from ostinato.backbones.encoder import Arch
from ostinato.errors import InputError


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing that the weights were trained with.

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
        """Preprocessing without normalisation: pixels in [0, 1], as in several public toolboxes."""
        return Preprocess(self.size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.interpolation)


@dataclass(frozen=True)
class VisionSizes:
    """Specification of an image encoder without its weights.

    Attributes:
        arch: sizes of the layers.
        patch: side of a patch in pixels.
        preprocess: input size and normalisation.
        readout: see :class:`VisionBackbone`.
    """

    arch: Arch
    patch: int
    preprocess: Preprocess
    readout: str


class VisionBackbone(Backbone):
    """A vision transformer.

    Images enter as uint8 (B, 3, S, S), or as float on the [0, 1] scale; ``embed`` normalises them, so that no caller
    can forget it.

    Args:
        arch: sizes of the encoder.
        patch: side of a patch in pixels.
        preprocess: input size and normalisation.
        origin: where the weights come from.
        readout: "cls" reads the CLS token after the final norm, "mean" averages the patch tokens and then normalises
            the mean (timm's ``fc_norm``), "cls+mean" joins both, each of length 1.
    """

    modality = "image"
    kind = "an image encoder"

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
        super().__init__(arch, readout=readout, origin=origin)
        if preprocess.size % patch:
            raise InputError(f"Backbone: size {preprocess.size} must be a multiple of the patch side {patch}.")
        self.patch, self.preprocess = patch, preprocess
        n_patches = (preprocess.size // patch) ** 2
        self.patch_embed = nn.Conv2d(3, arch.dim, patch, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, arch.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + n_patches, arch.dim))
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1), persistent=False)

    def embed(self, x: Tensor) -> Tokens:
        """Patches plus CLS token plus positions.

        Args:
            x: images (B, 3, S, S), uint8 in [0, 255] or float in [0, 1].

        Returns:
            Tokens (B, 1 + patches, D), in the precision of the weights.

        Raises:
            InputError: if the images have another dtype or side than the weights expect.
        """
        size, images = self.preprocess.size, x
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise InputError(f"embed: images must be (B, 3, {size}, {size}), got {tuple(images.shape)}.")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise InputError(f"embed: images must be uint8 in [0, 255] or float in [0, 1], got {images.dtype}.")
        pixels = images.float().div(255) if images.dtype == torch.uint8 else images.float()
        pixels = ((pixels - self.mean) / self.std).to(self.dtype)
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)
        h = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.pos_embed
        return Tokens(h)

    def as_tokens(self, prompts: Tensor) -> Tensor:
        """Prompts (..., P, D) plus the position of the CLS token, as in L2P."""
        return prompts + self.pos_embed[0, 0].float()

    def average(self, tokens: Tokens) -> Tensor:
        """Normalised mean of the patches."""
        return self.encoder.norm(tokens.h[..., 1:, :].mean(-2)).float()

    def contents(self, x: Tensor) -> list[Any]:
        """Pixels of each image."""
        return list(x.cpu().contiguous().numpy())

    @property
    def sizes(self) -> VisionSizes:
        """Specification from which the same backbone can be built."""
        return VisionSizes(self.arch, self.patch, self.preprocess, self.readout)

    def settings(self) -> tuple[Any, ...]:
        """Sizes, normalisation and read-out."""
        return (self.arch, self.preprocess, self.readout, self.patch)

    def describe(self) -> dict[str, Any]:
        """Size, normalisation and read-out."""
        return asdict(self.preprocess) | {"readout": self.readout}
