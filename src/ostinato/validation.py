"""Errors of pydantic as sentences."""

from __future__ import annotations

from pydantic import ValidationError

from ostinato.errors import did_you_mean
from ostinato.quoting import dotted, quoted, shown


def describe_validation(error: ValidationError, where: str, known: list[str]) -> str:
    """The first problem of a pydantic error as one sentence with a way out.

    Args:
        error: of pydantic.
        where: what comes before the key; may be empty.
        known: keys that may stand where an unknown one does.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    loc = [part for part in first["loc"] if part != "[key]"]  # pydantic's word for a wrong key itself
    key = dotted(*filter(None, where.split(".")), *loc) or "it"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(shown(str(loc[-1])), known) if known else "Leave it out."
        return f"{key}: unknown key. {hint}"
    return f"{key}: {first['msg']}, got {quoted(first['input'])}."
