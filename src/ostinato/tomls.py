"""Parsing of untrusted TOML in bounded time and memory."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from ostinato.errors import InputError
from ostinato.quoting import shown

MOST_BYTES = 2**22
"""Largest file to read in bytes; a list of 20,000 classes fits."""

_MOST_PARTS = 32
_TOKEN = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\Z)'
    r"|'''.*?(?:'''|\Z)"
    r'|"(?:[^"\\\n]|\\.)*+"?'
    r"|'[^'\n]*+'?"
    r"|\#[^\n]*+|[\w-]++|[ \t]++|.",
    re.DOTALL,
)


class NotToml(ValueError):
    """Text that is no TOML, or nested too deeply."""


def loads(text: str) -> dict[str, Any]:
    """Parse a text in TOML.

    Raises:
        NotToml: if it is no TOML, naming the line, or nested too deeply.
    """
    if _is_deep(text):  # tomllib takes quadratic time in the parts of a key
        raise NotToml(f"a key is nested in more than {_MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise NotToml("its values are nested too deeply") from None
    except ValueError as error:  # no TOML, or an integer of thousands of digits
        raise NotToml(shown(str(error))) from None


def _is_deep(text: str) -> bool:
    """Tell whether a key, outside of strings and comments, has more parts than allowed."""
    if text.count(".") < _MOST_PARTS:
        return False
    parts, open_ = 0, False  # parts before the last dot, and whether another may follow
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token.isspace() and token != "\n":
            continue
        if token == ".":
            open_ = parts > 0
        elif re.match(r"[\w\"'-]", token):
            parts = parts + 1 if open_ else 1
            open_ = False
            if parts > _MOST_PARTS:
                return True
        else:
            parts, open_ = 0, False
    return False


def read(path: Path, where: str) -> dict[str, Any]:
    """Read a TOML file, with or without a byte order mark.

    Args:
        path: path of the file.
        where: option that names the file, for messages.

    Raises:
        InputError: if it cannot be read, is too large, or is not TOML, naming the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES + 1)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not TOML: it must be in UTF-8, but {shown(str(error))}.") from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{where}: cannot be read ({reason}).") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{where}: must have at most {MOST_BYTES >> 20} MiB, but is larger than that.")
    try:
        return loads(text)
    except NotToml as error:
        raise InputError(f"{where}: is not TOML: {error}.") from None
