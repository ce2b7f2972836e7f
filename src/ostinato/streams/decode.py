"""From a file or its bytes to an RGB image, and what is wrong with those that cannot become one."""

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from ostinato.errors import DataError

MAX_PIXELS = 100_000_000
"""Larger images are refused: they are mistakes or attacks, and one of them can fill the memory."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of Pillow's formats, those that are read, whatever a file is called; a JPEG of several pictures opens as MPO.

Others start programs (EPS runs Ghostscript, on code in the file), fetch what a file names, or, as AVIF, may hold far
larger pictures than their headers say, so that the memory for them cannot be bounded.
"""

FULL_CHECK_FILES = 20_000
FULL_CHECK_BYTES = 2_000_000_000
"""Up to here every image is decoded when a source is opened; beyond, only its header is read."""

_READ = "BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read"

_ORIENTATION = 0x0112


class _Unfit(Exception):
    """An image that opens but cannot be used."""


def decode(data: Path | bytes, where: str) -> Image.Image:
    """Read an image, turned as its EXIF data says, on white where it is transparent.

    Args:
        data: a file, or what a file would hold.
        where: what to call it in an error.

    Returns:
        RGB, in memory.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with _open(data) as image:
            image.load()
            return to_rgb(image)
    except Exception as error:  # the decoders of damaged files raise almost anything
        raise DataError(f"{where}: {_reason(error)}.") from error


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """An image that somebody opened, as :func:`decode` gives the file behind it.

    Args:
        image: of any kind that can be used; it stays as it is.
        where: what to call it in an error.

    Returns:
        RGB, in memory.

    Raises:
        DataError: if it cannot be used.
    """
    try:
        if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO") and not _is_loaded(image):
            raise _Unfit(f"opened but not loaded, of kind {image.format}; {_READ}, and others if load() was called")
        _check(image)
        image.load()
        return to_rgb(image)
    except Exception as error:  # the decoders of damaged files raise almost anything
        raise DataError(f"{where}: {_reason(error)}.") from error


def read_bytes(path: Path) -> bytes:
    """A file as it is.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {_reason(error)}.") from error


def problem(data: Path | bytes, *, full: bool) -> str | None:
    """What is wrong with an image, if anything.

    Args:
        data: a file, or what a file would hold.
        full: decode it all, so that a truncated or damaged one is found; else read the header only.

    Returns:
        The reason, or None.
    """
    try:
        with _open(data) as image:
            if full:
                image.draft("L", (1, 1))  # a JPEG at an eighth of its size: all is read, little is computed
                image.load()
    except Exception as error:  # the decoders of damaged files raise almost anything
        return _reason(error)
    return None


def problems(read: Callable[[int], Path | bytes | None], n: int, total_bytes: int) -> dict[int, str]:
    """Check many images with a few threads.

    Args:
        read: gives image ``i`` as a file or bytes; None where there is nothing.
        n: how many there are.
        total_bytes: their size, which decides how closely they are looked at.

    Returns:
        Position -> reason of those that cannot be used.
    """
    full = n <= FULL_CHECK_FILES and total_bytes <= FULL_CHECK_BYTES

    def check(index: int) -> str | None:
        data = read(index)
        return "no image" if data is None else problem(data, full=full)

    with warnings.catch_warnings():  # once around all threads: filters are shared between them
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = list(pool.map(check, range(n), chunksize=64))
    return {index: reason for index, reason in enumerate(found) if reason is not None}


def to_rgb(image: Image.Image) -> Image.Image:
    """Any usable image as 8-bit RGB.

    Args:
        image: a loaded image.

    Returns:
        RGB; transparency is composited on white, 16-bit greys are scaled to 8 bits.
    """
    image = _upright(image)
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(_ORIENTATION, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # damaged EXIF data do not spoil the pixels
        return image


def _open(data: Path | bytes) -> Image.Image:
    size = len(data) if isinstance(data, bytes) else data.stat().st_size
    if size == 0:
        raise _Unfit("empty (0 bytes)")
    image = Image.open(BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)
    try:
        _check(image)
    except _Unfit:
        image.close()
        raise
    return image


def _check(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _Unfit(_too_large(f"{width} x {height}"))
    if image.mode in ("F", "LAB"):
        raise _Unfit(f"pixels of kind {image.mode!r}; save it as an 8-bit RGB or grey image")


def _is_loaded(image: ImageFile.ImageFile) -> bool:
    try:
        return not image.tile and image.im is not None
    except (AssertionError, AttributeError):  # there is no way to ask; which one it is depends on Pillow's release
        return False


def _too_large(size: str) -> str:
    return f"too large ({size} pixels; at most {MAX_PIXELS // 1_000_000} million are read); make it smaller"


def _reason(error: Exception) -> str:
    if isinstance(error, _Unfit):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large("far over the limit")
    if isinstance(error, UnidentifiedImageError):
        return f"not an image, damaged at its start, or of another kind; {_READ}"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if "truncated" in str(error).lower():
        return f"truncated: it ends before the image does ({error})"
    return f"damaged ({type(error).__name__}: {error})"
