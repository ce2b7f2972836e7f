"""Images of any kind that a Python user holds, as RGB."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.paths import refuse_url
from ostinato.streams.decode import MAX_FILE_BYTES, as_rgb, decode


class BinaryFile(Protocol):
    """A file opened for reading bytes, or what has its ``read``."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes."""
        ...


Input = str | Path | bytes | BinaryFile | Image.Image | np.ndarray | Tensor
"""A file by its path, its bytes or opened; an image of PIL; pixels as an array (H, W) or (H, W, channels) or a tensor
(channels, H, W), in uint8 or in floats from 0 to 1. For a text encoder, a text."""

_KINDS = "image files, bytes, opened files, PIL images, arrays or tensors"


def is_one_input(value: Any) -> bool:
    """Whether a value is one input, not a list or a batch of them."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim in (2, 3)
    return isinstance(value, str | Path | bytes | Image.Image) or hasattr(value, "read")


def read_image(given: Any, index: int, backbone: str) -> tuple[str, Image.Image]:
    """Name of an input, and the input as an RGB image.

    Args:
        given: an :data:`Input`.
        index: its position, for its name.
        backbone: name of the backbone, for messages.

    Raises:
        DataError: if it cannot be read.
        InputError: if it is something else, or a URL.
    """
    name = f"image {index}"
    if isinstance(given, str | Path):
        refuse_url(str(given), "predict")
        return str(given), decode(Path(given), str(given))
    if isinstance(given, Image.Image):
        return name, as_rgb(given, name)
    if isinstance(given, np.ndarray | Tensor):
        return name, as_rgb(Image.fromarray(_pixels(given, name)), name)
    if hasattr(given, "read"):
        given = _content(given, name)
    if not isinstance(given, bytes):
        raise InputError(f"predict: {backbone} takes {_KINDS}, but input {index} is {given!r}.")
    return name, decode(given, name)


def _content(file: Any, name: str) -> Any:
    """Bytes of an opened file, at most one more than an image may have."""
    label = getattr(file, "name", name)
    try:
        data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: closed
        raise DataError(f"{label}: cannot be read ({error}).") from None
    if isinstance(data, str):
        raise InputError(f"predict: {label} must be opened for bytes, open(path, 'rb'), but gives text.")
    return data


def _pixels(given: np.ndarray | Tensor, name: str) -> np.ndarray:
    """Pixels (H, W) or (H, W, channels) in uint8."""
    if isinstance(given, Tensor):
        axes = "(channels, H, W)"
        given = given.detach().cpu()
        given = given.float() if given.dtype in (torch.bfloat16, torch.float16) else given
        array, channels = given.numpy(), given.shape[0] if given.ndim == 3 else 0
        array = np.moveaxis(array, 0, -1) if given.ndim == 3 else array
    else:
        axes = "(H, W) or (H, W, channels)"
        array, channels = given, given.shape[2] if given.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"predict: {name} must have the shape {axes} with 1, 3 or 4 channels, got {tuple(given.shape)}."
        )
    if np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise InputError(f"predict: {name} must have values from 0 to 1 if they are floats. Convert it to uint8.")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise InputError(f"predict: {name} must be of uint8, or of floats from 0 to 1, got {array.dtype}.")
    return np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)
