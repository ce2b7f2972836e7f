"""Readers of options: words of a command line, TOML files, tables of runs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from ostinato.config import absolute, build_config, parse_overrides, read_toml
from ostinato.methods.dualprompt import DualPrompt
from ostinato.registry import check_options
from ostinato.reproduce.table import read_table
from tests.faults.fuzz import Target

BASE = {"method": {"name": "simplecil"}}

WORDS = (
    b"method", b"data", b"train.", b"stream.tasks", b"backbone", b"[[", b"]]", b"[a]", b"{a=1}", b"=", b".", b",",
    b'"', b"'", b'"""', b"#", b"\n", b"\r\n", b"\\u0000", b"\\ud800", b"2024-01-01", b"07:32:00Z", b"0x" + b"f" * 40,
    b"true", b"inf", b"-nan", b"1_0", b"a." * 40, b"[" * 500, b"{a=" * 200, b"~root", b"x.py:y", b"/", b"..",
)  # fmt: skip


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Gone when the process ends."""
    return tempfile.TemporaryDirectory(prefix="ostinato-faults-")


def file_of(data: bytes, name: str) -> Path:
    """The one file of a target, with other content each time."""
    path = Path(_folder().name) / name
    path.write_bytes(data)
    return path


def _words(data: bytes) -> object:
    words = data.decode(errors="surrogateescape").split("\n")
    return absolute(build_config(BASE, parse_overrides(words)))


def _toml(data: bytes) -> object:
    return absolute(build_config(BASE, read_toml(file_of(data, "options.toml"))))


def _options(data: bytes) -> object:
    config = build_config(BASE, read_toml(file_of(data, "method.toml")))
    return check_options(DualPrompt, config.method.options(), 6)


def _table(data: bytes) -> object:
    return read_table(str(file_of(data, "table.toml")))


def _told(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


TARGETS = [
    Target(
        "overrides",
        _told(
            "data=photos/\nstream.step=5\nseed=3",
            'stream.tasks=[["a","b"],["c"]]\ntrain.milestones=0.5,0.8\ntrain.lr=1e-3',
            "backbone=vit_tiny_patch16_224.x\nbackbone.weights=~/w.npz\ncache=/tmp/c\nstate_cache=0.5\ndevice=cuda:1",
            "method=l2p\nmethod.layers=[1,2]\neval=old/\nmethod.warm=false\ndata.sets=['a','b']",
        ),
        _words,
        WORDS,
    ),
    Target(
        "toml",
        _told(
            'method = "l2p"\ndata = "photos/"\nseed = 3\n[train]\nlr = 1e-3\n[stream]\ntasks = [["a"], ["b"]]\n',
            '[method]\nname = "l2p"\nlayers = [1, 2]\n[data]\npath = "x"\nworkers = 2\n[backbone]\nsize = 64\n',
            "data.path = 'a'\ncache = '''x'''\n[eval]\nsplit = 'test'\n[checkpoint]\nevery = 5\n",
        ),
        _toml,
        WORDS,
        cost=2,
    ),
    Target(
        "method options",
        _told(
            "[method]\ng_layers = [0, 1]\ne_layers = [2]\n[method.keys]\nname = 'learned'\npull = 0.5\n",
            "[method]\ng_length = 3\ne_layers = 2\npgp = 0.9\nkeys = 'mean'\n",
        ),
        _options,
        (*WORDS, b"g_length", b"e_layers", b"pull", b"keys", b"learned", b"{}"),
        cost=4,
    ),
    Target(
        "table",
        _told(
            'format = 1\ntitle = "t"\noptions = ["seed=1"]\n[[row]]\nname = "a"\nmethod = "l2p"\nnote = "n"\n'
            "published = { last = 90.0, forgetting = 3 }\n[[row]]\nname = 'b'\nnot_run = 'x'\n",
            'title = "t"\n[[row]]\nname = "a"\npreset = "cifar100/l2p"\noptions = ["stream.step=5"]\n'
            "published_in = { v = { last = 1 } }\n[[variant]]\nname = 'v'\n"
            "options = ['seed=2']\n[[variant]]\nname = 'w'\n",
        ),
        _table,
        (*WORDS, b"[[row]]", b"[[variant]]", b"published", b"not_run", b'name = "a"', b"format = 2"),
        cost=4,
    ),
]  # fmt: skip
