"""HEIC pictures: read with the extra, named without it, within the same bounds."""

from __future__ import annotations

import io
import struct
import sys

import numpy as np
import pytest
from PIL import Image

from ostinato.errors import DataError
from ostinato.streams import decode as decoding
from ostinato.streams import open_source
from ostinato.streams.decode import decode, problem

pillow_heif = pytest.importorskip("pillow_heif", reason="the extra heic is not installed")


def heic(colour=(200, 40, 60), size=(60, 40), mode="RGB"):
    """A picture of a colour as HEIC."""
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.new(mode, size, colour)).save(file, quality=90)
    return file.getvalue()


def sized(data, width, height):
    """A picture whose header tells of another size."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def test_a_picture_is_decoded_in_colour_and_on_white():
    image = decode(heic(), "a.heic")
    assert (image.mode, image.size) == ("RGB", (60, 40))
    assert np.abs(np.asarray(image).astype(int) - (200, 40, 60)).max() < 12
    clear = decode(heic((0, 0, 0, 0), mode="RGBA"), "clear.heic")
    assert np.asarray(clear).min() > 240
    assert problem(heic(), full=True) is None


def test_a_folder_of_pictures_from_a_phone_is_a_source(tmp_path):
    for name, colour in (("red", (220, 30, 30)), ("blue", (30, 30, 220))):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.{'HEIC' if i else 'heif'}").write_bytes(heic((*colour[:2], colour[2] + i)))
    source = open_source(str(tmp_path))
    assert len(source.train) + len(source.test) == 6
    assert np.asarray(source.train.load(0)).mean() > 50


def test_without_the_extra_the_message_names_it(tmp_path, monkeypatch):
    (tmp_path / "a.heic").write_bytes(heic())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(DataError, match=r"a\.heic: a HEIC picture, which the extra heic reads: pip install"):
        decode(tmp_path / "a.heic", "a.heic")


def test_damaged_and_forged_pictures_are_refused():
    whole = heic()
    with pytest.raises(DataError, match=r"a\.heic: damaged"):
        decode(whole[:-30], "a.heic")
    with pytest.raises(DataError, match=r"a\.heic: damaged"):
        decode(sized(heic(size=(640, 480)), 64, 64), "a.heic")  # decoded, it would be larger


def test_a_picture_without_its_coded_size_is_refused():
    with pytest.raises(DataError, match=r"a\.heic: a HEIC picture without its coded size"):
        decode(heic().replace(b"ispe", b"ispx"), "a.heic")


def test_memory_is_bounded_by_the_coded_picture(monkeypatch):
    assert "at most 0.001 million are read" in problem(heic(), full=False, pixels=1000)
    # A small part is shown of a picture that fills the memory.
    assert "MB of memory" in problem(sized(heic(), 16000, 16000), full=False)
    monkeypatch.setattr(decoding, "_FIRST_TRY", 0)
    assert problem(heic(), full=True) is None  # opened again with what it needs
