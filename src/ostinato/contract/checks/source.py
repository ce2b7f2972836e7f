"""Checks of a method's source: no transformer, documented options, and a named paper."""

from __future__ import annotations

import inspect
import re

from ostinato.contract.case import Case, ContractViolation, DoesNotApply
from ostinato.lookup import file_of
from ostinato.methods.base import Method
from ostinato.registry import options_schema, parts_of, sources_of_options


def there_is_no_transformer_in_it(case: Case) -> None:
    """The method's file computes no attention; it edits the encoder."""
    pattern = r"scaled_dot_product|MultiheadAttention|nn\.Transformer|\.attn\b"
    if found := re.search(pattern, _text(case.method)):
        raise ContractViolation(f"its file holds {found[0]!r}.")


def _text(method: type[Method]) -> str:
    """Text of a method's file, as executed."""
    if (file := file_of(method)) is not None:
        return file.text.decode("utf-8", errors="replace")
    try:
        return inspect.getsource(inspect.getmodule(method) or method)
    except (OSError, TypeError):  # defined in an interpreter
        raise DoesNotApply("it is in no file that could be read") from None


def every_option_has_a_default_and_is_explained(case: Case) -> None:
    """Options have defaults, and stand under Args of the class's docstring as ``option: description``.

    Options of a part stand under Attributes of the part's options.
    """
    docs = [source.__doc__ or "" for source in sources_of_options(case.method)]
    for option, field in options_schema(case.method).model_fields.items():
        if field.is_required():
            raise ContractViolation(f"method.{option} has no default.")
        if not any(f"{option}:" in doc for doc in docs):
            raise ContractViolation(f"method.{option} is missing from Args.")
    for option, parts in parts_of(case.method).items():
        for part in parts:
            for key in part.own():
                if f"{key}:" not in (type(part).__doc__ or ""):
                    raise ContractViolation(
                        f"method.{option}.{key} is missing from Attributes of {type(part).__name__}."
                    )


def it_says_what_it_implements(case: Case) -> None:
    """The file's docstring names its source, and has a paragraph 'Differences from the ...' (paper, code)."""
    if "Differences from the" not in (getattr(inspect.getmodule(case.method), "__doc__", None) or ""):
        raise ContractViolation("the file's docstring must say 'Differences from the paper: ...' (or 'none').")
