"""Values in messages: on one line, of bounded length, without control characters."""

from __future__ import annotations

import re
import reprlib
from typing import Any

MOST = 200
"""Most characters of a value in a message."""

_INNER = 20
_DIGITS = 40


def quoted(value: Any) -> str:
    """Format a value as Python does, shortened."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = MOST
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = short.maxfrozenset = _INNER
    short.maxlong = _DIGITS
    try:
        text = short.repr(value)
    except ValueError:  # Python refuses to format integers of thousands of digits
        return f"an integer of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"
    return text if len(text) <= 2 * MOST else f"{text[:MOST]}..."


def shown(text: str) -> str:
    """Return a text, by :func:`quoted` if it is long or not printable."""
    return text if text.isprintable() and len(text) <= MOST else quoted(text)


def dotted(*parts: Any) -> str:
    """Join the parts of an option's name by dots; parts other than plain words are quoted."""
    return ".".join(part if re.fullmatch(r"[\w-]{1,60}", part := str(whole)) else quoted(part) for whole in parts)
