"""Parts of a method that are chosen by name and bring options of their own.

A method's constructor takes ``base: Annotated[Part, PROMPTS]``, where ``PROMPTS`` is a :class:`Choice`: a name, the
name with options, or the typed options. ``base="l2p"``, ``base={"name": "l2p", "top_k": 5}`` and
``base=PoolOptions(top_k=5)`` say the same as ``method.base=l2p method.base.top_k=5`` on the command line.
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
    """Base of a part's options: frozen, and without unknown names. A subclass narrows ``name`` to its own."""

    name: str

    def own(self) -> dict[str, Any]:
        """The options by name, without the name of the part."""
        return {key: value for key, value in self if key != "name"}


Size = Annotated[int, Field(ge=1)]
"""An option that counts something there must be."""

Share = Annotated[float, Field(ge=0, le=1)]
"""An option that is a share; 0 switches off."""

Part = str | Mapping[str, Any] | Options
"""A part's name, a mapping of its name and options, or its typed options."""


Chosen = TypeVar("Chosen", bound=Options)


class Choice(Generic[Chosen]):
    """Parts that an option chooses between.

    Args:
        default: the part that is taken where nothing is given, with its options.
        others: defaults of the other parts.
    """

    def __init__(self, default: Chosen, *others: Chosen) -> None:
        self.default: Chosen = default
        self.parts: dict[str, Chosen] = {part.name: part for part in (default, *others)}

    def read(self, value: Part, where: str) -> Chosen:
        """The chosen part's options, all filled in.

        Args:
            value: as given; a mapping without a name belongs to the default.
            where: name of the option, for messages.

        Raises:
            InputError: for an unknown part, an option that the part does not have, or a wrong value.
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
    """A part's options from its defaults and values.

    Raises:
        InputError: naming the first wrong one under ``where``.
    """
    try:
        return type(defaults)(**{**dict(defaults), **values})
    except ValidationError as error:
        raise InputError(describe_validation(error, where, list(type(defaults).model_fields))) from None


def choice_of(field: FieldInfo) -> Choice[Any] | None:
    """The choice behind an option of a method; None of a plain one."""
    return next((extra for extra in field.metadata if isinstance(extra, Choice)), None)


def tuples(fields: Mapping[str, FieldInfo]) -> set[str]:
    """Names of the options that are lists."""
    return {
        k for k, f in fields.items() if any(get_origin(a) is tuple for a in (f.annotation, *get_args(f.annotation)))
    }


def widened(fields: Mapping[str, FieldInfo], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as given, where one number stands for a list of it: ``e_layers=5`` for ``e_layers=[5]``."""
    lists = tuples(fields)
    return {k: (v,) if k in lists and type(v) in (int, float) else v for k, v in given.items()}
