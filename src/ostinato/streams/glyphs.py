"""Characters of matplotlib's fonts: any number of image classes without a download.

A class is a character. Its samples are rendered on loading: a random font among those that have the character, then
rotation, shear, scale, shift, stroke thickness, blur and noise, as bright strokes on a dark ground (as in
scikit-learn's digits). Every sample is a pure function of the seed, the split, the character and its index: neither
the number of classes nor the order of loading changes it. Another release of Pillow may draw a pixel differently.

``assets/glyphs.json`` (written by ``scripts/pretrain_glyphs.py --characters``) holds two disjoint sets of characters
without digits or look-alikes:

* ``PRETRAIN``: 851 Latin, Greek and Cyrillic letters, punctuation, arrows and mathematical symbols. The bundled
  backbone was trained on these and on nothing else.
* ``STREAM``: 1,456 characters of other scripts and other symbols, the classes of :func:`glyphs`. Different ones come
  first: blocks of Unicode take turns, and each turn takes the character that resembles the earlier ones least.
"""

import json
import math
import unicodedata
import zlib
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ostinato.errors import DataError, InputError
from ostinato.streams.source import Source, Split

FONTS = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSansMono",
    "STIXGeneral",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)
"""Fonts for all their characters, the most complete first."""

LETTER_FONTS = ("cmr10", "cmb10", "cmss10", "cmti10", "cmtt10", "cmmi10")
"""Fonts for ASCII letters only; their other codes are not Unicode's."""

SIZE = 32
"""Side of a sample, in pixels."""

_EM = 128
"""Font size at which characters are drawn, in pixels."""

_ENLARGE = 1.15
"""Maximum factor from drawing to glyph, so that a dot stays smaller than a disc."""

_FILL = 0.75
"""Fraction of the square that the longer side of a glyph takes before jitter."""

_OVERSAMPLE = 4
"""Samples are composed at this multiple of their size."""


def _characters(key: str) -> tuple[str, ...]:
    path = Path(str(resources.files("ostinato"))) / "assets" / "glyphs.json"
    return tuple(json.loads(path.read_text(encoding="utf-8"))[key])


PRETRAIN = _characters("pretrain")
"""Characters the bundled backbone was trained on; never in the stream."""

STREAM = _characters("stream")
"""Classes of the stream, in order."""


def glyphs(classes: int = 20, per_class_train: int = 40, per_class_test: int = 20, seed: int = 0) -> Source:
    """Make a source of rendered characters, none of which the bundled backbone was trained on.

    Args:
        classes: number of classes; the first ones of ``STREAM``.
        per_class_train: training images of each class.
        per_class_test: test images of each class.
        seed: of all jitter.

    Returns:
        Images of 32 x 32 pixels in classes named by the characters' Unicode names.

    Raises:
        InputError: if a number is out of range.
        DataError: if matplotlib's fonts lack one of the characters.
    """
    if not 2 <= classes <= len(STREAM):
        raise InputError(f"glyphs: classes must be between 2 and {len(STREAM)}, got {classes}.")
    for name, value, least in (
        ("per_class_train", per_class_train, 1),
        ("per_class_test", per_class_test, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"glyphs: {name} must be at least {least}, got {value}.")
    characters = STREAM[:classes]
    if lacking := [class_name(character) for character in characters if not fonts_with(character)]:
        raise DataError(
            f"glyphs: every character must be in one of matplotlib's fonts, but {len(lacking)} are in none (the first: "
            f"{lacking[0]}). Install an unmodified matplotlib, or request fewer classes."
        )
    return Source(
        "glyphs",
        [class_name(character) for character in characters],
        _Rendered("train", characters, per_class_train, seed),
        _Rendered("test", characters, per_class_test, seed),
        augment="glyph",
    )


def class_name(character: str) -> str:
    """Unicode name of a character, or "U+XXXX" where it has none."""
    return unicodedata.name(character, f"U+{ord(character):04X}")


def is_digit(character: str) -> bool:
    """Whether a character is a number, has a numeric value, or decomposes into such a character."""
    return any(
        unicodedata.category(part).startswith("N")
        or unicodedata.digit(part, None) is not None
        or unicodedata.numeric(part, None) is not None
        for part in character + unicodedata.normalize("NFKD", character)
    )


def code_points() -> frozenset[int]:
    """Code points that at least one of the fonts can draw."""
    return frozenset().union(*_tables().values())


def fonts_with(character: str) -> tuple[str, ...]:
    """Fonts that have a glyph for a character, in a fixed order."""
    tables = _tables()
    names = tuple(name for name in FONTS if ord(character) in tables[name])
    return names + LETTER_FONTS if character.isascii() and character.isalpha() else names


@lru_cache(maxsize=2048)
def drawn(character: str, font: str, side: int = _OVERSAMPLE * SIZE) -> Image.Image:
    """Draw a character without jitter, centred; its longer side takes 3/4 of the square unless it is a tiny one.

    The greyscale image (side, side) is bright on dark, all dark where the glyph is blank. It is cached: do not edit it.
    """
    loaded = _font(font)
    left, top, right, bottom = (round(edge) for edge in loaded.getbbox(character))
    ink = Image.new("L", (max(1, right - left) + 8, max(1, bottom - top) + 8))
    ImageDraw.Draw(ink).text((4 - left, 4 - top), character, fill=255, font=loaded)
    square = Image.new("L", (side, side))
    box = ink.getbbox()
    if box is None:
        return square
    ink = ink.crop(box)
    factor = side / (_OVERSAMPLE * SIZE) * min(_ENLARGE, _FILL * _OVERSAMPLE * SIZE / max(ink.size))
    width, height = (max(1, round(factor * length)) for length in ink.size)
    square.paste(ink.resize((width, height), Image.Resampling.LANCZOS), ((side - width) // 2, (side - height) // 2))
    return square


def sample(character: str, rng: np.random.Generator) -> Image.Image:
    """Draw a jittered image of a character, RGB of 32 x 32 pixels; ``rng`` is the only source of randomness."""
    names = fonts_with(character)
    glyph = drawn(character, names[rng.integers(len(names))])
    thickness = int(rng.integers(-1, 3))
    if thickness > 0:
        glyph = glyph.filter(ImageFilter.MaxFilter(2 * thickness + 1))
    elif thickness < 0:
        thin = glyph.filter(ImageFilter.MinFilter(3))
        glyph = Image.blend(glyph, thin, 0.7)
    large = glyph.transform(glyph.size, Image.Transform.AFFINE, _jitter(rng, glyph.width), Image.Resampling.BILINEAR)
    large = large.filter(ImageFilter.GaussianBlur(_OVERSAMPLE * rng.uniform(0.0, 0.6)))
    pixels = np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    pixels = pixels * rng.uniform(0.75, 1.0) + rng.normal(0.0, rng.uniform(0.0, 10.0), pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).convert("RGB")


def _jitter(rng: np.random.Generator, side: int) -> tuple[float, float, float, float, float, float]:
    """Affine coefficients, output to input, of a random rotation, shear, scale and shift about the centre."""
    angle, shear = math.radians(rng.uniform(-12.0, 12.0)), rng.uniform(-0.2, 0.2)
    scale_x, scale_y = rng.uniform(0.85, 1.15, 2)
    shift_x, shift_y = rng.uniform(-0.06, 0.06, 2) * side
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(turn @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([scale_x, scale_y]))
    middle = side / 2
    offset = np.array([middle, middle]) - back @ np.array([middle + shift_x, middle + shift_y])
    (a, b), (d, e) = back.tolist()
    return a, b, float(offset[0]), d, e, float(offset[1])


_KEPT = 2**16
"""Drawn samples of a split that are kept, a kilobyte each, as a drawing takes longer than a pass of a small network."""


class _Rendered(Split):
    """Samples that are drawn when they are first loaded."""

    def __init__(self, split: str, characters: tuple[str, ...], per_class: int, seed: int):
        self.labels = np.repeat(np.arange(len(characters), dtype=np.int64), per_class)
        self._split, self._characters, self._per_class, self._seed = split, characters, per_class, seed
        self._drawn: dict[int, bytes] = {}

    def load(self, index: int) -> Image.Image:
        grey = self._drawn.get(index)
        if grey is not None:
            return Image.frombytes("L", (SIZE, SIZE), grey).convert("RGB")
        character, number = self._at(index)
        key = [self._seed, zlib.crc32(self._split.encode()), ord(character), number]
        image = sample(character, np.random.default_rng(key))
        if len(self._drawn) < _KEPT:
            self._drawn[index] = image.getchannel(0).tobytes()
        return image

    def name(self, index: int) -> str:
        character, number = self._at(index)
        return f"{self._split}/{class_name(character)}/{number:04d}"

    def _content(self, index: int) -> bytes:
        return f"{self.name(index)} of seed {self._seed}".encode()  # determines the drawing

    def _at(self, index: int) -> tuple[str, int]:
        """Character and number within the class, of a position in the split."""
        if not 0 <= index < len(self.labels):
            raise IndexError(f"sample {index} of {len(self.labels)}")
        label, number = divmod(index, self._per_class)
        return self._characters[label], number


def _path(font: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"


@lru_cache(maxsize=1)
def _tables() -> dict[str, frozenset[int]]:
    """Code points for which each font has a glyph."""
    from matplotlib.ft2font import FT2Font

    tables = {}
    for font in FONTS:
        path = _path(font)
        if not path.is_file():
            raise DataError(f"glyphs: matplotlib must bring the font {path}, but it is not there; reinstall it.")
        tables[font] = frozenset(code for code, glyph in FT2Font(str(path)).get_charmap().items() if glyph)
    return tables


@cache
def _font(font: str) -> ImageFont.FreeTypeFont:
    """Load a font, laid out by Pillow itself: the result must not depend on optional libraries."""
    return ImageFont.truetype(_path(font), _EM, layout_engine=ImageFont.Layout.BASIC)
