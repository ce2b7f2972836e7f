"""Images that are made to do harm: start programs, fill the memory, hang."""

import io
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from ostinato.errors import DataError
from ostinato.streams import open_source
from ostinato.streams.decode import as_rgb, decode

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
READ = "BMP, GIF, JPEG, PNG, PPM, TIFF and WebP are read"


def png(size=(8, 8), colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A program called gs, first on the path, that leaves a file behind when it is started."""
    trace, program = tmp_path / "started", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho started >> {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return trace


def test_the_canary_sings(canary, tmp_path):
    with Image.open(io.BytesIO(POSTSCRIPT)) as image, pytest.raises(OSError, match=r".*"):
        image.load()
    assert canary.exists()


def test_postscript_that_is_called_png_starts_no_program(canary, tmp_path):
    folder = tmp_path / "photos"
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(png())
    bad = folder / "a" / "bad.png"
    bad.write_bytes(POSTSCRIPT)
    with pytest.raises(DataError, match=rf"a/bad\.png: not an image, damaged at its start, or of another kind; {READ}"):
        open_source(str(folder))
    with pytest.raises(DataError, match=READ):
        decode(bad, str(bad))
    table = pa.table({"image": pa.array([POSTSCRIPT, png(), png()], pa.binary()), "label": [0, 1, 1]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=READ):
        open_source(str(tmp_path / "train.parquet"))
    assert not canary.exists()


def test_an_opened_picture_of_another_kind_starts_no_program(canary):
    with Image.open(io.BytesIO(POSTSCRIPT)) as image, pytest.raises(DataError, match=f"of kind EPS; {READ}"):
        as_rgb(image, "image 0")
    assert not canary.exists()


def test_pictures_of_other_kinds_are_taken_once_loaded():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "TGA")
    with Image.open(buffer) as image:
        with pytest.raises(DataError, match="of kind TGA"):
            as_rgb(image, "image 0")
        image.load()
        assert as_rgb(image, "image 0").getpixel((3, 3)) == (255, 0, 0)
