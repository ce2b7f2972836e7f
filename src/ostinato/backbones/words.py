"""Checks of tokenizer rules from files, and errors of the ``tokenizers`` library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MOST_GROWTH = 64
_MOST_PREPENDED = 1000
_MOST_COPIES = 4


def growth(rules: Any) -> str | None:
    """Reason why the rules in a ``tokenizer.json`` let a text grow without bound, or None.

    A chain of small rules can double a text at each step.
    """
    if not isinstance(rules, dict):
        return None
    factor, prepended, maps = 1, 0, 0
    for step in _steps([rules.get("normalizer"), rules.get("pre_tokenizer")]):
        kind = step.get("type")
        if kind == "Replace":
            pattern, content = step.get("pattern"), step.get("content")
            plain = pattern.get("String") if isinstance(pattern, dict) else None
            least = max(1, len(plain)) if isinstance(plain, str) else 1  # a regular expression may match one character
            factor *= max(1, -(-len(content) // least)) if isinstance(content, str) else 1
        elif kind == "ByteLevel":
            factor *= 2
        elif kind == "Prepend" and isinstance(step.get("prepend"), str):
            prepended += len(step["prepend"])
        elif kind == "Precompiled":
            maps += 1
        if factor > _MOST_GROWTH or prepended > _MOST_PREPENDED or maps > 1:
            return f"its rules make a text more than {_MOST_GROWTH} times as long"
    for step in _steps([rules.get("post_processor")]):
        pieces = step.get("single")
        if isinstance(pieces, list) and sum("Sequence" in p for p in pieces if isinstance(p, dict)) > _MOST_COPIES:
            return f"its template holds a text more than {_MOST_COPIES} times"
    return None


def _steps(waiting: list[Any]) -> Iterator[dict[str, Any]]:
    """The rules, with those in their sequences."""
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            yield step
            for inner in ("normalizers", "pretokenizers", "processors"):
                waiting += step[inner] if isinstance(step.get(inner), list) else []


def of_tokenizers(error: BaseException) -> bool:
    """Whether an error may come from the ``tokenizers`` library: a panic in Rust is no ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
