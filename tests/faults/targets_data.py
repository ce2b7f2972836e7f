"""Readers of data: images, tables, files of texts and folders."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ostinato.predicting import image_files, texts_of
from ostinato.streams import EvalTransform, open_source
from ostinato.streams.decode import decode, problem
from tests.faults.fuzz import Target
from tests.faults.targets_options import file_of

FORMATS = {
    "png": (
        ("RGB", {}), ("RGBA", {}), ("L", {}), ("LA", {}), ("1", {}), ("P", {"transparency": 1}), ("I;16", {}),
    ),
    "jpeg": (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"exif": True})),
    "gif": (("P", {}), ("P", {"transparency": 1}), ("RGB", {"save_all": True})),
    "bmp": (("RGB", {}), ("P", {}), ("1", {})),
    "tiff": (
        ("RGB", {}), ("RGB", {"compression": "tiff_lzw"}), ("RGB", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "jpeg"}), ("1", {"compression": "group4"}), ("RGBA", {"exif": True}), ("I;16", {}),
    ),
    "webp": (("RGB", {}), ("RGBA", {"lossless": True}), ("RGB", {"save_all": True})),
    "ppm": (("RGB", {}), ("L", {}), ("1", {})),
    "mpo": (("RGB", {"save_all": True}),),
}  # fmt: skip
"""For each format, kinds of pixels and options of the seeds."""

WORDS = {
    "png": (b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT",
            b"\x00\x01\x00\x00", b"\x7f\xff\xff\xff"),
    "jpeg": (b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xdb", b"\xff\xe1",
             b"\xff\xe2", b"\xff\xed", b"Exif\0\0", b"MPF\0", b"ICC_PROFILE\0", b"8BIM", b"MM\0*", b"\xff\xff"),
    "gif": (b"GIF87a", b"GIF89a", b"\x21\xf9\x04", b"\x21\xff\x0bNETSCAPE2.0", b"\x2c", b"\x3b", b"\xff\xff"),
    "bmp": (b"BM", b"\x28\0\0\0", b"\x0c\0\0\0", b"\x7c\0\0\0", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\2\xff\xff"),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"\x00\x01", b"\x01\x01", b"\x11\x01", b"\x42\x01", b"\x43\x01",
             b"\xff\xff\xff\xff", b"\x03\0", b"\x04\0", b"\x10\0"),
    "webp": (b"RIFF", b"WEBP", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"ICCP", b"\xff\x3f"),
    "ppm": (b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P7\n", b"Pf\n", b"#", b"65535", b"99999 99999 "),
    "mpo": (b"\xff\xe2", b"MPF\0", b"\xff\xd9\xff\xd8", b"\x01\xb0", b"\x02\xb0", b"\xff\xff\xff\xff"),
}  # fmt: skip

CSV = (b"text", b"label", b"label,text\n", b",", b";", b"\t", b'"', b'""', b"\n", b"\r\n", b"\r", b"\xef\xbb\xbf",
       b"\xff\xfe", b"gr\xfcn", b"\0", b",,,,\n", b"001", b"true", b"2020-01-01")  # fmt: skip

JSON = (b'{"text": "a", "label": "b"}\n', b'"text"', b'"label"', b"null", b"true", b"1.5", b"[]", b"{}", b":", b",",
        b'"', b"{", b"}", b"\n", b'"\\ud800"', b"NaN", b"-0", b"9223372036854775808", b"\xef\xbb\xbf",
        b'{"a":' * 900)  # fmt: skip

PARQUET = (
    b"PAR1",
    b"text",
    b"label",
    b"huggingface",
    b"ARROW:schema",
    b"\x15\x02",
    b"\x15\x80\x80\x80\x80\x0f",
    b"\x19\x1c",
)

TREE = (b"train/", b"test/", b"val/", b"task1/", b"a/", b"b/", b"\0P", b"\0J", b"\0B", b"\0T", b"\0F", b"\0L", b"\0D",
        b"\n", b"../", b"/", b".png", b".jpg", b".JPEG", b"train.csv", b"__MACOSX/", b"\xc3\xa9", b"e\xcc\x81", b" ",
        b"train.parquet", b"test.jsonl")  # fmt: skip


def image(kind: str, mode: str, options: dict[str, object], size: tuple[int, int] = (9, 7)) -> bytes:
    """A small picture in a file format."""
    options = dict(options)
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        picture = Image.fromarray(pixels.view(np.uint16)[..., 0])
    elif mode == "P":
        picture = picture.convert("RGB").quantize(4)
    else:
        picture = picture.convert("RGB").convert(mode) if mode in ("1", "CMYK") else picture.convert(mode)
    if options.pop("exif", False):
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "somebody"
        options["exif"] = exif
    if options.get("save_all"):
        options["append_images"] = [picture.rotate(180)]
    file = io.BytesIO()
    picture.save(file, kind.upper(), **options)
    return file.getvalue()


def _images(kind: str) -> Callable[[], Sequence[bytes]]:
    return lambda: [image(kind, mode, options) for mode, options in FORMATS[kind]]


VIEW = EvalTransform(8)


def _see(data: bytes) -> object:
    problem(data, full=True)
    return VIEW(decode(data, "it"))


def _table(kind: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        source = open_source(str(file_of(data, f"train.{kind}")), on_error="skip")
        return [part.load(i) for part in (source.train, source.test) if part for i in range(len(part))]

    return read


def _texts(name: str) -> Callable[[bytes], object]:
    return lambda data: list(texts_of([], [file_of(data, name)], None))


def _csv() -> list[bytes]:
    return [
        b"text,label\na,x\nb,y\nc,x\n",
        b'text;label\r\n"a; b";1\r\n"c ""d"", e";2\r\n',
        '\ufefflabel,text,,\n001,gr\u00fcn,,\ntrue,"two\nlines",,\n'.encode(),
    ]


def _tsv() -> list[bytes]:
    return [data.replace(b",", b"\t").replace(b";", b"\t") for data in _csv()]


def _jsonl() -> list[bytes]:
    rows = [{"text": "a", "label": "x"}, {"text": "gr\u00fcn", "label": "y"}, {"label": "x", "text": "c"}]
    other = [{"text": "a", "label": 1, "n": 1.5, "o": {"p": []}}, {"text": "b", "label": 2, "n": None}]
    return ["".join(f"{json.dumps(row)}\n" for row in some).encode() for some in (rows, other)]


def parquet(columns: dict[str, object], names: list[str] | None = None, **options: object) -> bytes:
    """A table as a file, with names of its labels as the ``datasets`` library writes them."""
    table = pa.table(columns)
    if names is not None:
        features = {"label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def _parquet() -> list[bytes]:
    texts = ["a b", "c", "gr\u00fcn", "a b"]
    images = [{"bytes": image("png", "L", {}, (2, 2)), "path": None}] * 3 + [{"bytes": None, "path": "x.png"}]
    kinds = {"n": [1, 2, None, 4], "l": [["a"], [], None, ["b", "c"]], "d": pa.array(["x", "y", "x", None])}
    return [
        parquet({"text": texts, "label": ["x", "y", "x", "y"]}, compression="zstd"),
        parquet({"text": texts, "label": [0, 1, 1, 0]}, ["zero", "one"], use_dictionary=False, compression="none"),
        parquet({"image": images, "label": [0, 1, 1, 0]}, ["zero", "one"], compression="none"),
        parquet({"text": texts, "label": [True, False, True, False]} | kinds, compression="gzip", row_group_size=2),
        parquet(
            {"text": texts, "label": pa.array(["x", "y", "x", "y"]).dictionary_encode()},
            use_dictionary=False, column_encoding={"text": "DELTA_BYTE_ARRAY"}, data_page_version="2.0",
        ),
    ]  # fmt: skip


def _trees() -> list[bytes]:
    def below(root: str, n: int = 2) -> str:
        return "".join(f"{root}{c}/{i}.png\0P\n" for c in "ab" for i in range(n))

    tables = "train.csv\0T\ntest.csv\0T\na/0.png\0P\n"
    odd = below("", 3) + "a/1.jpg\0J\na/x.jpg\0F\nb/y.png\0L\nb/z.png\0D\nb/notes.txt\0B\nc\0L\n"
    return [tree.encode() for tree in (below(""), below("train/") + below("test/"), below("task1/") + odd, odd, tables)]


@cache
def _kinds() -> dict[bytes, bytes]:
    """Contents of files, by a letter."""
    return {
        b"P": image("png", "RGB", {}, (3, 2)),
        b"J": image("jpeg", "L", {}, (3, 2)),
        b"T": b"text,label\na,x\nb,y\n",
        b"B": b"\x89PNG\r\n\x1a\nbad",
    }


def _plant(root: bytes, line: bytes) -> None:
    """Make the file that a line describes, where that is possible."""
    name, _, kind = line.partition(b"\0")
    parts = [part[:60] for part in name.split(b"/")[:6] if part not in (b"", b".", b"..") and b"\0" not in part]
    if not parts:
        return
    path = b"/".join([root, *parts])
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == b"F":
            os.mkfifo(path)
        elif kind == b"L":
            os.symlink(path, path)
        elif kind == b"D":
            os.mkdir(path)
        else:
            with open(path, "xb") as file:
                file.write(_kinds().get(kind[:1], kind))
    except OSError:
        pass  # a file where a folder should be


def _folder(data: bytes) -> object:
    """Open the tree that the lines of ``data`` describe."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "data"
        root.mkdir()
        for line in data.split(b"\n")[:12]:
            _plant(bytes(root), line)
        for path in image_files([root]):
            problem(path, full=True)
        source = open_source(str(root), on_error="skip")
        parts = [part for part in (source.train, source.test) if part]
        return [(part.load(i), part.name(i), part.fingerprint(i)) for part in parts for i in range(len(part))]


TARGETS = [
    *(
        Target(f"image, {kind}", _images(kind), _see, WORDS[kind], 15.0 if kind in ("gif", "webp") else 8.0)
        for kind in FORMATS  # some damage makes them of 40 million pixels
    ),
    Target("table, csv", _csv, _table("csv"), CSV, 20.0),
    Target("table, tsv", _tsv, _table("tsv"), CSV, 20.0),
    Target("table, jsonl", _jsonl, _table("jsonl"), JSON, 20.0),
    Target("table, parquet", _parquet, _table("parquet"), PARQUET, 30.0),
    Target("texts, txt", lambda: [b"a\nb c\n", "\ufeffgr\u00fcn\r\n\nx".encode()], _texts("texts.txt"), CSV, 3.0),
    Target("texts, csv", _csv, _texts("texts.csv"), CSV, 15.0),
    Target("texts, jsonl", _jsonl, _texts("texts.jsonl"), JSON, 5.0),
    Target("folder", _trees, _folder, TREE, 100.0),
]
