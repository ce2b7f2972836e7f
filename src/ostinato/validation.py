"""Errors of pydantic as sentences."""

from __future__ import annotations

from pydantic import ValidationError

from ostinato.errors import did_you_mean
from ostinato.quoting import dotted, quoted, shown


def describe_validation(error: ValidationError, where: str, known: list[str]) -> str:
    """Describe the first problem of a pydantic error in a sentence.

    Args:
        error: pydantic error.
        where: prefix of the key; may be empty.
        known: valid keys, for a suggestion.
    """
    first = error.errors(include_url=False, include_context=False)[0]
    loc = [part for part in first["loc"] if part != "[key]"]  # pydantic marks a wrong key by "[key]"
    key = dotted(*filter(None, where.split(".")), *loc) or "it"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(shown(str(loc[-1])), known) if known else "Leave it out."
        return f"{key}: unknown key. {hint}"
    return f"{key}: {first['msg']}, got {quoted(first['input'])}."
