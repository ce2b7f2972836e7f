"""Text for a terminal: nothing in it is obeyed, and a reader that went away is noticed."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from typing import Any, NoReturn

import typer

from ostinato.errors import OstinatoError

_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Categories of characters that terminals obey, hide or cannot show; letters joined by a Cf character stay readable."""


class OutputClosedError(OstinatoError):
    """Whoever read the output went away; the exit code is that of a process that SIGPIPE ended."""

    exit_code = 141


def printable(text: str) -> str:
    r"""A text with control characters, and bytes that are not UTF-8, written out: ``\x1b`` for ESC."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _OBEYED else _written(c) for c in text)


def _written(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was no UTF-8, as Python decodes names of files
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def say(text: str, *, err: bool = False) -> None:
    """Print a line.

    Raises:
        OutputClosedError: if nobody reads it any more.
    """
    try:
        typer.echo(printable(text), err=err)
    except BrokenPipeError:
        closed()


def say_json(value: Any, *, indent: int | None = None) -> None:
    """Print a value as JSON, without NaN, which is none; what JSON has no words for is printed as text.

    Raises:
        OutputClosedError: if nobody reads it any more.
    """
    say(json.dumps(value, allow_nan=False, indent=indent, default=str))


def closed() -> NoReturn:
    """Stop writing to standard output.

    Raises:
        OutputClosedError: always.
    """
    # What is still buffered would fail again when Python ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    raise OutputClosedError("Stopped: whoever read the output closed it.")
