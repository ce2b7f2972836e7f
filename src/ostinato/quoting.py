"""Values in messages: on one line, of bounded length, without characters that a terminal would obey."""

from __future__ import annotations

import re
import reprlib
from typing import Any

MOST = 200
"""Characters of a value that a message shows."""

_INNER = 20
_DIGITS = 40


def quoted(value: Any) -> str:
    """A value as Python writes it."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = MOST
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = _INNER
    short.maxlong = _DIGITS
    try:
        text = short.repr(value)
    except ValueError:  # Python writes no integers of thousands of digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 2 * MOST else f"{text[:MOST]}..."


def shown(text: str) -> str:
    """A text as it is, or as :func:`quoted` where that would be long or odd."""
    return text if text.isprintable() and len(text) <= MOST else quoted(text)


def dotted(*parts: Any) -> str:
    """The name of an option from its parts, odd ones quoted."""
    return ".".join(part if re.fullmatch(r"[\w-]{1,60}", part := str(whole)) else quoted(part) for whole in parts)
