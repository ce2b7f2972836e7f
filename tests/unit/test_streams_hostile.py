"""Images that are made to do harm: start programs, fill the memory, hang."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import threading
import time
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from ostinato.errors import DataError
from ostinato.streams import open_source
from ostinato.streams.decode import MAX_BYTES, as_rgb, decode, problem
from ostinato.streams.memory import Budget

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


def test_pictures_without_pixels_are_refused():
    with pytest.raises(DataError, match=r"image 0: it has no pixels \(0 x 4\)"):
        as_rgb(Image.new("RGB", (0, 4)), "image 0")


def test_pictures_of_other_kinds_are_taken_once_loaded():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(buffer, "TGA")
    with Image.open(buffer) as image:
        with pytest.raises(DataError, match="of kind TGA"):
            as_rgb(image, "image 0")
        image.load()
        assert as_rgb(image, "image 0").getpixel((3, 3)) == (255, 0, 0)


MEASURE = """
import io, os, re, sys, warnings
from pathlib import Path
from PIL import Image
from ostinato.errors import DataError
from ostinato.streams import EvalTransform, TrainTransform, decode as module
import numpy as np

def status(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def peak(do):
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    try:
        do()
    except DataError as error:
        print(error, file=sys.stderr)
    print(status("VmHWM") - before)

def stored(mode, size, *args, **kwargs):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, *args, **kwargs)
    return buffer.getvalue()

warnings.simplefilter("ignore")
"""


def peaks_of(code):
    """Bytes by which the memory of a process grows at most in each of its calls of peak, and its messages."""
    code = MEASURE + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()], done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_the_memory_for_images_and_their_views_is_bounded():
    grown, messages = peaks_of(
        """
        def transforms(data):
            for transform, rng in (EvalTransform(224), None), (TrainTransform(224), np.random.default_rng(0)):
                transform(module.decode(data, "it"), rng)

        size = (10000, 10000)
        for mode, options in (
            ("RGBA", ("PNG",)), ("I;16", ("PNG",)), ("CMYK", ("JPEG",)), ("RGBA", ("WEBP",))
        ):
            data = stored(mode, size, *options, progressive=True, method=0, compress_level=1)
            peak(lambda: transforms(data))
        os.cpu_count = lambda: 4
        data = stored("RGB", size, "PNG", compress_level=1)
        peak(lambda: module.problems(lambda i: data, 4, 0))
        """
    )
    assert len(grown) == 5
    assert max(grown) < MAX_BYTES, grown
    assert messages.count("\n") == 1
    assert "it: too large (10000 x 10000 pixels; it takes 2,067 MB of memory, at most 1,000 MB are used)" in messages


def test_nobody_holds_more_than_the_budget():
    budget, held, most = Budget(10), [], []

    def work(size):
        for _ in range(20):
            with budget.of(size):
                held.append(size)
                most.append(sum(min(n, 10) for n in held))
                time.sleep(0.0005)
                held.remove(size)

    threads = [threading.Thread(target=work, args=(size,)) for size in (3, 4, 7, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) <= 10
    assert len(most) == 80


def jpeg(size, **options):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 30, 40)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def with_scans(n):
    data = jpeg((1000, 1000), progressive=True)
    at = data.rindex(b"\xff\xda")
    return data[:-2] + data[at:-2] * n + data[-2:]


def run_lengths(width, height):
    rows, begin = b"\1\0\0\0" * height, 14 + 40 + 1024
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", begin + len(rows), 0, 0, begin) + head + bytes(1024) + rows


def one_tile(side):
    """An image of 16 x 16 in a tile of side x side."""
    pack = zlib.compressobj(9)
    data = b"".join(pack.compress(bytes(side)) for _ in range(side)) + pack.flush()
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: None, 325: len(data)}
    begin = 8 + 2 + 12 * len(tags) + 4
    entries = [struct.pack("<HHII", tag, 4, 1, begin if value is None else value) for tag, value in tags.items()]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (with_scans(2000), "more than 100 scans, each of the whole image; save it anew"),
        (jpeg((8, 8))[:2] + b"\xff\xfe\0\2" * 200_000 + jpeg((8, 8))[2:], "broken up into too many pieces"),
        (b"\xff\xd8\xff" + bytes(1_000_000), "broken up into too many pieces"),
        (run_lengths(3_000_000, 4), r"too large for run lengths \(3000000 x 4 pixels\); save it as PNG"),
        (one_tile(12_000), r"it takes 1,\d+ MB of memory, at most 1,000 MB are used"),
    ],
    ids=["scans", "segments", "junk", "run lengths", "tile"],
)
def test_small_files_that_take_long_or_much_are_refused(data, reason):
    begin = time.perf_counter()
    with pytest.raises(DataError, match=reason):
        decode(data, "it")
    assert problem(data, full=True) is not None
    assert time.perf_counter() - begin < 5


def test_huge_jpegs_are_decoded_smaller_and_others_as_they_are():
    assert decode(jpeg((8200, 4100)), "it").size == (4100, 2050)
    assert decode(jpeg((9000, 8200)), "it").size == (2250, 2050)
    assert decode(jpeg((8200, 4090)), "it").size == (8200, 4090)  # the shorter side would become too short
    assert decode(jpeg((4900, 4890)), "it").size == (4900, 4890)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decode(jpeg((8200, 4100), exif=turned), "it").size == (2050, 4100)


def test_large_images_are_converted_as_small_ones(monkeypatch):
    import numpy as np

    from ostinato.streams import decode as module

    pixels = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    made = [Image.fromarray(pixels).convert(mode) for mode in ("RGBA", "LA", "L", "CMYK", "1")]
    made += [Image.fromarray(pixels).convert("RGB").quantize(9), Image.fromarray(pixels.view(np.uint16)[..., 0])]
    made[-2].info["transparency"] = 3
    whole = [np.asarray(module.to_rgb(image)) for image in made]
    for part in (10, 100):  # less and more than a row
        monkeypatch.setattr(module, "_PART", part)
        for image, expected in zip(made, whole, strict=True):
            assert np.array_equal(module.to_rgb(image), expected)
