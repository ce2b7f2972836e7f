"""Validation of recipe overrides."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from ostinato.errors import InputError, did_you_mean
from ostinato.methods.base import Recipe


def check_recipe(train: dict[str, Any]) -> dict[str, Any]:
    """Check names and types of overrides of a recipe, and convert their values.

    Raises:
        InputError: for an unknown field or a wrong value.
    """
    known = list(Recipe.__dataclass_fields__)
    if unknown := [k for k in train if k not in known]:
        raise InputError(f"train.{unknown[0]}: unknown key. {did_you_mean(unknown[0], known)}")
    try:
        full = TypeAdapter(Recipe).validate_python(train)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # from Recipe.__post_init__
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        raise InputError(f"train.{first['loc'][0]}: {first['msg']}, got {str(first['input'])[:80]!r}.") from None
    return {k: getattr(full, k) for k in train}
