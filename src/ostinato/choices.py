"""Choices between parts of a method, each with its options.

A constructor takes ``base: Annotated[Part, PROMPTS]``, where ``PROMPTS`` is a :class:`Choice`. The value is a name,
``base="l2p"``, a name with options, ``base={"name": "l2p", "top_k": 5}``, or typed options,
``base=PoolOptions(top_k=5)``. On the command line, this is ``method.base=l2p method.base.top_k=5``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, TypeVar, cast, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from ostinato.errors import InputError, did_you_mean
from ostinato.quoting import dotted, quoted, shown
from ostinato.validation import describe_validation


class Options(BaseModel, frozen=True, extra="forbid"):
    """Base of a part's options, frozen and without unknown names; a subclass fixes ``name``."""

    name: str

    def own(self) -> dict[str, Any]:
        """Options by name, without the name of the part."""
        return {key: value for key, value in self if key != "name"}


Size = Annotated[int, Field(ge=1)]
"""Option that is a count of at least 1."""

Share = Annotated[float, Field(ge=0, le=1)]
"""Option that is a share; 0 switches off."""

Part = str | Mapping[str, Any] | Options
"""Name of a part, mapping of its name and options, or its typed options."""


Chosen = TypeVar("Chosen", bound=Options)


class Choice(Generic[Chosen]):
    """Parts to choose from, each with default options; the first one is the default."""

    def __init__(self, default: Chosen, *others: Chosen) -> None:
        self.default: Chosen = default
        self.parts: dict[str, Chosen] = {part.name: part for part in (default, *others)}

    def read(self, value: Part, where: str) -> Chosen:
        """Check the options of the chosen part and fill in defaults.

        Args:
            value: given value; a mapping without a name is for the default part.
            where: name of the option, for messages.

        Raises:
            InputError: if the part is unknown, lacks an option, or a value is wrong.
        """
        if isinstance(value, Options):
            if type(value) is not type(self.parts.get(value.name)):
                raise InputError(f"{where} must be one of {list(self.parts)}, got {type(value).__name__}.")
            return cast(Chosen, value)
        given = {"name": value} if isinstance(value, str) else value
        if not isinstance(given, Mapping):
            raise InputError(
                f"{where} must be one of {list(self.parts)}, with options or without, got {quoted(value)}."
            )
        name = given.get("name", self.default.name)
        if not isinstance(name, str) or name not in self.parts:
            raise InputError(f"{where} must be one of {list(self.parts)}, got {quoted(name)}.")
        part = self.parts[name]
        fields = type(part).model_fields
        for key in given:
            if key not in fields:
                raise InputError(self._no_effect(str(key), name, where))
        try:
            return type(part)(**(dict(part) | widened(fields, given)))
        except ValidationError as error:
            raise InputError(describe_validation(error, where, list(fields))) from None

    def _no_effect(self, key: str, name: str, where: str) -> str:
        owners = [other for other, part in self.parts.items() if key in type(part).model_fields]
        if owners:
            return (
                f"{dotted(*where.split('.'), key)} has no effect with {where}={name}: it is an option of "
                f"{' and '.join(f'{where}={owner}' for owner in owners)}."
            )
        known = [field for field in type(self.parts[name]).model_fields if field != "name"]
        hint = did_you_mean(shown(key), known) if known else f"{where}={name} has no options."
        return f"{dotted(*where.split('.'), key)}: unknown key. {hint}"


def built(defaults: Chosen, where: str, values: Mapping[str, Any]) -> Chosen:
    """Make a part's options from defaults and values.

    Raises:
        InputError: if a value is wrong, naming the first under ``where``.
    """
    try:
        return type(defaults)(**{**dict(defaults), **values})
    except ValidationError as error:
        raise InputError(describe_validation(error, where, list(type(defaults).model_fields))) from None


def choice_of(field: FieldInfo) -> Choice[Any] | None:
    """Choice of an option; None for a plain option."""
    return next((extra for extra in field.metadata if isinstance(extra, Choice)), None)


def tuples(fields: Mapping[str, FieldInfo]) -> set[str]:
    """Names of options that are lists."""
    return {
        k for k, f in fields.items() if any(get_origin(a) is tuple for a in (f.annotation, *get_args(f.annotation)))
    }


def widened(fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn single numbers for list options into lists: ``e_layers=5`` into ``e_layers=[5]``."""
    lists = tuples(fields)
    return {k: (v,) if k in lists and type(v) in (int, float) else v for k, v in given.items()}
