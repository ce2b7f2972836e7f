"""Decode image files to RGB in bounded memory, and report why a file cannot be decoded.

See :data:`MAX_BYTES` for the bound, which holds for forged headers too.
"""

import io
import os
import re
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ostinato.errors import DataError
from ostinato.paths import open_file
from ostinato.streams.memory import Budget

MAX_PIXELS = 100_000_000
"""Maximum pixels of an image: larger ones are mistakes or attacks, and one of them can fill the memory."""

MAX_BYTES = 1_000_000_000
"""Maximum memory for decoding an image, and for all threads of a process together.

It holds the decoded pixels (4 bytes each; 1 for grey and palette images), the RGB image made of them (4 bytes each),
the decoder's buffers, and :data:`_METADATA`. 100 million pixels fit, except as WebP and as a JPEG of several scans on a
long strip, which take more. Each process (``workers``) has this much.
"""

MAX_FILE_BYTES = 2**29
"""Maximum bytes of an image file: none larger has so few pixels."""

REDUCED_FROM = 24_000_000
REDUCED_SIDE = 2048
"""A JPEG of more pixels than ``REDUCED_FROM`` is decoded at a half, a quarter or an eighth of its sides, as long as the
shorter one keeps at least ``REDUCED_SIDE``, twice the input of the largest usual encoders."""

MAX_SCANS = 100
"""Maximum scans of a JPEG: each, even an empty one, takes time in proportion to the image. Encoders write about ten."""

MAX_RUN_PIXELS = 10_000_000
"""Maximum pixels of a run-length encoded BMP, which Pillow decodes slowly."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Accepted formats of Pillow, by content rather than suffix; a JPEG of several pictures opens as MPO. HEIC is read by
pillow-heif, where it is installed; libheif refuses a picture that is larger than its header says before it is decoded.

Others start programs (EPS runs Ghostscript, on code in the file), fetch what a file names, or, as AVIF, may hold far
larger pictures than their headers claim, so that their memory cannot be bounded.
"""

FULL_CHECK_FILES = 20_000
FULL_CHECK_BYTES = 2_000_000_000
"""Up to these limits every image is decoded when a source is opened; beyond, only its header is read."""

_READ = "BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read"

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Brands of the pictures of phones, at byte 8."""

_HEIC_SIZE = re.compile(rb"ispe\0{4}(.{4})(.{4})", re.DOTALL)
"""Width and height of a coded picture in a HEIC file; the picture shown may be a small part of it."""

_ORIENTATION = 0x0112
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that sets an image upright, by its EXIF orientation."""

_METADATA = 64 * 2**20
"""Maximum bytes of comments, profiles and other metadata of an image; Pillow stops there."""

_FIRST_TRY = 16 * 2**20
"""Bytes reserved at first, enough for most images; a larger one is opened again with as much as it needs."""

_MAX_READS = 200_000
"""Maximum reads of a file's header: a file of millions of empty pieces would take minutes and gigabytes."""

_UNCOUNTED = 10**10
"""Pixels times bytes of a JPEG up to which scans need not be counted: any number of them takes less than a second."""

_PART = 2**20
"""Pixels that are converted at a time."""

_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Next marker of a JPEG: in its data, 0xff precedes 0 or the number of a restart."""

_MEMORY = Budget(MAX_BYTES)

T = TypeVar("T")


class _Unfit(Exception):
    """An image that opens but cannot be used."""


class _Counting:
    """File that limits how often its header is read."""

    reads = 0
    counting = True

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads += 1
        if self.counting and self.reads > _MAX_READS:
            raise _Unfit("its header is broken up into too many pieces; save it anew")
        return super().read(size)  # pyright: ignore[reportAttributeAccessIssue]


class _Stored(_Counting, io.BytesIO):
    """Bytes of a table."""


class _Opened(_Counting, io.BufferedReader):
    """A file on disk."""


def decode(data: Path | bytes, where: str) -> Image.Image:
    """Decode an image, turned by its EXIF orientation, on white where it is transparent.

    Args:
        data: an image file, or its bytes.
        where: name of the image in an error.

    Returns:
        RGB, in memory; a huge JPEG is reduced, see :data:`REDUCED_FROM`.

    Raises:
        DataError: if it cannot be decoded.
    """

    def read(image: ImageFile.ImageFile) -> tuple[Image.Image, int]:
        image.load()
        return _flat(image), _orientation(image)

    try:
        # The decoded pixels are freed before those in RGB are turned.
        return _upright(*_opened(data, _reduce, read))
    except Exception as error:  # the decoders of damaged files raise almost anything
        raise DataError(f"{where}: {_reason(error)}.") from error


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """Convert an opened image of any usable mode to RGB, as :func:`decode` does; the image stays as it is.

    Raises:
        DataError: if it cannot be used; the message starts with ``where``.
    """
    try:
        if isinstance(image, ImageFile.ImageFile) and image.format not in (*FORMATS, "MPO") and not _is_loaded(image):
            raise _Unfit(f"not loaded and of kind {image.format}; {_READ}, others after load()")
        _check(image)
        image.load()
        return to_rgb(image)
    except Exception as error:  # the decoders of damaged files raise almost anything
        raise DataError(f"{where}: {_reason(error)}.") from error


def problem(data: Path | bytes, *, full: bool, pixels: int | None = None) -> str | None:
    """Reason why an image cannot be used, or None.

    Args:
        data: an image file, or its bytes.
        full: read all of it; otherwise, only its header is read.
        pixels: maximum of its pixels; None for ``MAX_PIXELS``.
    """
    try:
        if full:
            # At an eighth of its size all of a JPEG is read and little is computed.
            _opened(data, lambda image: image.draft("L", (1, 1)), lambda image: image.load(), pixels)
        else:
            _opened(data, lambda _: None, lambda _: None, pixels)
    except Exception as error:  # the decoders of damaged files raise almost anything
        return _reason(error)
    return None


def problems(read: Callable[[int], Path | bytes | None], n: int, total_bytes: int) -> dict[int, str]:
    """Check ``n`` images in threads; only their headers above :data:`FULL_CHECK_FILES` or :data:`FULL_CHECK_BYTES`.

    ``read`` gives image ``i`` as a file or bytes, None where there is none; ``total_bytes`` is the size of all.

    Returns:
        Position -> reason of each image that cannot be used.
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
    """Convert a loaded image to upright 8-bit RGB; transparency becomes white, 16-bit greys are scaled to 8 bits."""
    return _upright(_flat(image), _orientation(image))


def _flat(image: Image.Image) -> Image.Image:
    """Convert to RGB without turning; large images part by part, to avoid intermediate copies of the whole."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    width, height = image.size
    if width * height <= _PART:
        return _part_in_rgb(image)
    whole = Image.new("RGB", image.size)
    columns = min(width, _PART)
    rows = max(1, _PART // columns)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            box = (left, top, min(left + columns, width), min(top + rows, height))
            whole.paste(_part_in_rgb(image.crop(box)), box)
    return whole


def _part_in_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data do not spoil the pixels
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _opened(
    data: Path | bytes,
    prepare: Callable[[ImageFile.ImageFile], Any],
    use: Callable[[ImageFile.ImageFile], T],
    pixels: int | None = None,
) -> T:
    """Open an image and return ``use(image)`` while its memory is reserved; ``prepare`` may ask for fewer pixels."""
    held = _METADATA + _FIRST_TRY
    while True:
        with _MEMORY.of(held), _reader(data) as file:
            size = file.seek(0, io.SEEK_END)
            if size == 0:
                raise _Unfit("empty (0 bytes)")
            if size > MAX_FILE_BYTES:
                raise _Unfit(
                    f"a file of {size // 10**6:,} MB; at most {MAX_FILE_BYTES // 10**6} MB are read as an image"
                )
            needed = _METADATA
            file.seek(0)
            head = file.read(12)
            heic = head[4:8] == b"ftyp" and head[8:] in _HEIC
            if heic or head[8:] == b"WEBP":  # their decoders read all of the file
                needed += 2 * size
            if needed <= held:
                with _heic_image(file) if heic else Image.open(file, formats=FORMATS) as image:
                    file.counting = False
                    _check(image, pixels)
                    needed += _needed(image, file, prepare)
                    if needed > MAX_BYTES:
                        reason = (
                            f"it takes {needed // 10**6:,} MB of memory, at most {MAX_BYTES // 10**6:,} MB are used"
                        )
                        raise _Unfit(_too_large(f"{image.width} x {image.height}", reason))
                    if needed <= held:
                        return use(image)
        held = needed  # the image is closed: nothing is held while waiting for more


def _heic_image(file: _Stored | _Opened) -> ImageFile.ImageFile:
    """Open a HEIC picture; its pixels are decoded by ``load``."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise _Unfit(
            "a HEIC picture, which the extra heic reads: pip install 'ostinato[heic]'. Or convert it to JPEG, for "
            "example: heif-convert IN.heic OUT.jpg"
        ) from None
    file.seek(0)
    return HeifImageFile(file)


def _reader(data: Path | bytes) -> _Stored | _Opened:
    return _Stored(data) if isinstance(data, bytes) else _Opened(open_file(data).detach())


def _needed(
    image: ImageFile.ImageFile, file: io.BytesIO | io.BufferedReader, prepare: Callable[[ImageFile.ImageFile], Any]
) -> int:
    """Bytes for decoding an image and for an RGB image of its size, beside metadata and file."""
    width, height = image.size
    needed = 0
    if image.format in ("JPEG", "MPO"):
        size = file.seek(0, io.SEEK_END)
        one_scan = False
        if width * height * size > _UNCOUNTED:
            file.seek(0)
            n = _scans(file.read())
            if n > MAX_SCANS:
                raise _Unfit(f"more than {MAX_SCANS} scans, each of the whole image; save it anew")
            one_scan = n < 2
            needed += size
        if not one_scan:  # the decoder keeps all coefficients, of 2 bytes each
            needed += 2 * width * height * len(image.getbands())
        prepare(image)
    elif image.format == "WEBP":  # two canvases, a frame and a copy of it
        needed += 12 * width * height
    elif image.format == "HEIF":  # its planes, pixels made of these, and the file once more
        file.seek(0)
        coded = [int.from_bytes(w) * int.from_bytes(h) for w, h in _HEIC_SIZE.findall(file.read())]
        if not coded:
            raise _Unfit("a HEIC picture without its coded size, so that its memory cannot be bounded. Save it again")
        needed += 8 * max(*coded, width * height) + file.tell()
    elif image.format == "TIFF":
        needed += _tile_bytes(image)
    elif image.tile and image.tile[0][0] == "bmp_rle":
        if width * height > MAX_RUN_PIXELS:
            raise _Unfit(f"too large for run lengths ({width} x {height} pixels); save it as PNG")
        needed += 2 * width * height
    width, height = image.size
    grey = image.mode in ("1", "L", "P")
    return needed + (1 if grey else 4) * width * height + 4 * width * height


def _scans(jpeg: bytes) -> int:
    """Number of scans of a JPEG; counting ends above the limit."""
    n, at = 0, 2
    while n <= MAX_SCANS and (found := _MARKER.search(jpeg, at)):
        at, kind = found.end(), jpeg[found.start() + 1]
        if kind == 0xD9:
            break
        n += kind == 0xDA
        at += int.from_bytes(jpeg[at : at + 2])
    return n


def _tile_bytes(tiff: ImageFile.ImageFile) -> int:
    """Bytes of a decoded tile, which may be larger than its image, and of the coefficients of a JPEG in it."""
    tags = tiff.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
    sides = [tags.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
    if not all(isinstance(side, int) for side in sides):
        raise _Unfit("damaged (the size of its tiles is not a number)")
    inside = 6 if "jpeg" in str(tiff.info.get("compression")) else 0
    return (8 + inside) * sides[0] * sides[1] + inside * tiff.width * tiff.height


def _reduce(image: ImageFile.ImageFile) -> None:
    """Ask the decoder of a huge JPEG for fewer pixels."""
    width, height = image.size
    if width * height > REDUCED_FROM and min(width, height) >= 2 * REDUCED_SIDE:
        by = min(8, min(width, height) // REDUCED_SIDE)
        image.draft(None, (width // by, height // by))


def _check(image: Image.Image, pixels: int | None = None) -> None:
    width, height = image.size
    pixels = MAX_PIXELS if pixels is None else pixels
    if width < 1 or height < 1:
        raise _Unfit(f"it has no pixels ({width} x {height})")
    if width * height > pixels:
        raise _Unfit(_too_large(f"{width} x {height}", f"at most {pixels / 1e6:g} million are read"))
    if image.mode in ("F", "LAB"):
        raise _Unfit(f"pixels of kind {image.mode!r}; save it as an 8-bit RGB or grey image")


def _is_loaded(image: ImageFile.ImageFile) -> bool:
    try:
        return not image.tile and image.im is not None
    except (AssertionError, AttributeError):  # depending on the version of Pillow, which offers no query
        return False


def _too_large(size: str, reason: str) -> str:
    return f"too large ({size} pixels; {reason}); make it smaller"


def _reason(error: Exception) -> str:
    if isinstance(error, _Unfit):
        return str(error)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return _too_large("far over the limit", f"at most {MAX_PIXELS // 1_000_000} million are read")
    if isinstance(error, UnidentifiedImageError):
        return f"not an image, damaged at its start, or of another kind; {_READ}"
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "no permission to read it"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    if "truncated" in str(error).lower():
        return f"truncated: it ends before the image does ({error})"
    return f"damaged ({type(error).__name__}: {error})"
