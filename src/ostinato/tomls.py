"""TOML from files and words that may be damaged or made to harm, in bounded time and memory."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from ostinato.errors import InputError
from ostinato.quoting import shown

MOST_BYTES = 2**22
"""Size of the largest file that is read: more than a list of 20,000 classes takes."""

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
    """A text that is no TOML, or more than a person would write."""


def loads(text: str) -> dict[str, Any]:
    """The values of a text in TOML.

    Raises:
        NotToml: with the line, if it is none, or nested without end.
    """
    if _is_deep(text):  # tomllib takes the square of a key's parts
        raise NotToml(f"a key is nested in more than {_MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise NotToml("its values are nested too deeply") from None
    except ValueError as error:  # of TOML, or of an integer of thousands of digits
        raise NotToml(shown(str(error))) from None


def _is_deep(text: str) -> bool:
    """Whether somewhere more parts are joined by dots than a key may have, outside texts and comments."""
    if text.count(".") < _MOST_PARTS:
        return False
    parts, open_ = 0, False  # names before the dot last seen, and whether one may follow
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
    """The values of a TOML file.

    Args:
        path: the file; a byte order mark before it does not count.
        where: what it was given for, for messages.

    Raises:
        InputError: if it cannot be read, is too large, or is not TOML, with the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(MOST_BYTES + 1)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not TOML: it must be in UTF-8, but {shown(str(error))}.") from None
    except (OSError, ValueError) as error:  # ValueError: of a name with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{where}: cannot be read ({reason}).") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"{where}: is larger than {MOST_BYTES >> 20} MiB, which no list of options is.")
    try:
        return loads(text)
    except NotToml as error:
        raise InputError(f"{where}: is not TOML: {error}.") from None
