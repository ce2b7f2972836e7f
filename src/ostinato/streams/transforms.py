"""Transforms of an image to the square uint8 tensor that a backbone takes; the backbone normalises it.

The generator that is passed in is the only source of randomness.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from ostinato.errors import InputError, did_you_mean

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
KINDS = ("photo", "glyph", "none")

MAX_SIZE = 8192
"""Maximum side of a transform in pixels: a batch of larger images would fill the memory."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_COPIED = 2**20
"""Pixels that are copied from an image at a time."""

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_ROTATION = 10.0
_SHIFT = 0.08
_ZOOM = (0.9, 1.1)


@dataclass(frozen=True)
class EvalTransform:
    """Deterministic transform of the whole image: shorter side to ``round(size / crop)``, then the centre.

    Attributes:
        size: side of the result, in pixels.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop: fraction of the resized shorter side that is kept, in (0, 1].
    """

    modality = "image"

    size: int
    interpolation: str = "bicubic"
    crop: float = 1.0

    def __post_init__(self) -> None:
        _check(self.size, self.interpolation)
        if not 0 < self.crop <= 1:
            raise InputError(f"crop must be in (0, 1], not {self.crop}.")

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:  # noqa: ARG002
        """Transform an RGB image to (3, size, size) uint8; ``rng``, which other transforms use, is ignored."""
        if image.width == image.height and self.crop == 1:
            return _resized(image, self.size, self.interpolation)
        return _to_tensor(self.resize(image))

    def resize(self, image: Image.Image) -> Image.Image:
        """Resize and crop an RGB image to (size, size).

        Both are one step, so that a long and narrow image makes no huge one on the way.
        """
        width, height = image.size
        short = round(self.size / self.crop)
        full_width = short if width <= height else int(short * width / height)
        full_height = short if height <= width else int(short * height / width)
        left, top = round((full_width - self.size) / 2), round((full_height - self.size) / 2)
        x, y = width / full_width, height / full_height
        box = (left * x, top * y, min((left + self.size) * x, width), min((top + self.size) * y, height))
        return image.resize((self.size, self.size), RESAMPLING[self.interpolation], box)


@dataclass(frozen=True)
class TrainTransform:
    """Random transform for training; without a generator, the same as ``EvalTransform``.

    Attributes:
        size: side of the result, in pixels.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        kind: "photo" is a crop of random area and shape, mirrored half the time; "glyph" a slight rotation,
            shift and zoom, never mirrored; "none" no augmentation.
        scale: smallest and largest area of a "photo" crop, as a fraction of the image.
        crop: as for ``EvalTransform``; "photo" ignores it, since it draws its own crops.
    """

    modality = "image"

    size: int
    interpolation: str = "bicubic"
    kind: Literal["photo", "glyph", "none"] = "photo"
    scale: tuple[float, float] = (0.05, 1.0)
    crop: float = 1.0

    def __post_init__(self) -> None:
        EvalTransform(self.size, self.interpolation, self.crop)  # checks them
        if self.kind not in KINDS:
            raise InputError(f"Augmentation {self.kind!r} is unknown. {did_you_mean(str(self.kind), KINDS)}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale must be two growing fractions of the area in (0, 1], not {self.scale}.")

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """Transform an RGB image to (3, size, size) uint8, randomly if ``rng`` is given."""
        if rng is None or self.kind == "none":
            return EvalTransform(self.size, self.interpolation, self.crop)(image)
        if self.kind == "glyph":
            return _to_tensor(_jiggle(EvalTransform(self.size, self.interpolation, self.crop).resize(image), rng))
        tensor = _resized(image, self.size, self.interpolation, _random_box(image.size, self.scale, rng))
        return tensor.flip(-1) if rng.random() < 0.5 else tensor


def _check(size: int, interpolation: str) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"size must be at least 1 pixel and at most {MAX_SIZE:,}, not {size:,}.")
    if interpolation not in RESAMPLING:
        hint = did_you_mean(interpolation, list(RESAMPLING))
        raise InputError(f"Interpolation {interpolation!r} is unknown. {hint}")


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def _resized(image: Image.Image, size: int, interpolation: str, box: Box | None = None) -> Tensor:
    """Resize an image, or a box of it, to a square: as Pillow does to within rounding, in a third of the time."""
    if interpolation not in ("bilinear", "bicubic"):
        part = image if box is None else image.crop(box)
        return _to_tensor(part.resize((size, size), RESAMPLING[interpolation]))
    pixels = torch.from_numpy(_pixels(image, box or (0, 0, *image.size))).permute(2, 0, 1)[None]
    return interpolate(pixels, (size, size), mode=interpolation, antialias=True)[0].contiguous()


def _pixels(image: Image.Image, box: Box) -> np.ndarray:
    """Pixels (H, W, 3) of a box; a large one is copied part by part, since Pillow copies twice."""
    left, top, right, bottom = box
    rows = max(1, _COPIED // (right - left))
    if rows >= bottom - top:
        return np.array(image if box == (0, 0, *image.size) else image.crop(box))
    pixels = np.empty((bottom - top, right - left, 3), np.uint8)
    for y in range(top, bottom, rows):
        end = min(y + rows, bottom)
        pixels[y - top : end - top] = np.asarray(image.crop((left, y, right, end)))
    return pixels


def _random_box(size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draw a crop of random area and shape; the centre where none fits in ten attempts."""
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * _RATIO[1])))
    h = min(height, max(1, round(width / _RATIO[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _jiggle(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate, shift and zoom slightly about the centre, on the colour of the border."""
    size = image.width
    angle = math.radians(rng.uniform(-_ROTATION, _ROTATION))
    zoom = rng.uniform(*_ZOOM)
    shift_x, shift_y = rng.uniform(-_SHIFT, _SHIFT, 2) * size
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    middle = size / 2
    x, y = middle + shift_x, middle + shift_y
    matrix = (cos, sin, middle - cos * x - sin * y, -sin, cos, middle + sin * x - cos * y)
    pixels = np.asarray(image)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(border, axis=0).astype(int).tolist()
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=(red, green, blue)
    )
