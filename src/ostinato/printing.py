"""Terminal output with escaped control characters, and an error if the output is closed."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from typing import Any, NoReturn

import typer

from ostinato.errors import OstinatoError

_ESCAPED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that terminals interpret, hide or cannot show."""


class OutputClosedError(OstinatoError):
    """Closed output; the exit code is that of SIGPIPE."""

    exit_code = 141


def printable(text: str) -> str:
    r"""Escape control characters and undecodable bytes of a text: ``\x1b`` for ESC."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _ESCAPED else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # surrogate of an undecodable byte in a file name
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(text: str, *, err: bool = False) -> None:
    """Print a line.

    Raises:
        OutputClosedError: if the output is closed.
    """
    try:
        typer.echo(printable(text), err=err)
    except BrokenPipeError:
        closed()


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON; values of other types are printed as text, NaN is an error.

    Raises:
        OutputClosedError: if the output is closed.
    """
    say(json.dumps(value, allow_nan=False, indent=indent, default=str))


def closed() -> NoReturn:
    """Redirect standard output to nowhere, and raise :class:`OutputClosedError`."""
    # Python would try to write the rest of its buffer at exit, and fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    raise OutputClosedError("Stopped, because the output was closed.")
