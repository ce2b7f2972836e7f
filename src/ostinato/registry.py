"""Method registry and option validation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from ostinato.errors import InputError
from ostinato.validation import describe_validation

if TYPE_CHECKING:
    from ostinato.methods.base import Method

M = TypeVar("M", bound="type[Method]")
_METHODS: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[M], M]:
    """Class decorator that makes a method known under ``name``: letters, digits, "_" and "-".

    Raises:
        InputError: if the name has others, or is taken by another class.
    """
    if not is_plain_name(name):
        raise InputError(f"register: a name has letters, digits, '_' and '-', got {name!r}.")

    def add(cls: M) -> M:
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"register: the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        _METHODS[name] = cls
        cls.name = name
        return cls

    return add


def is_plain_name(name: str) -> bool:
    """Whether a method can have this name; a path cannot."""
    return re.fullmatch(r"[\w-]+", name) is not None


def registered() -> dict[str, type[Method]]:
    """The methods by name that are known at this moment."""
    return dict(sorted(_METHODS.items()))


def restore(known: dict[str, type[Method]]) -> None:
    """Know these methods by name, and no other."""
    _METHODS.clear()
    _METHODS.update(known)


def is_registered(method: type[Method]) -> bool:
    """Tell whether a method's name finds it, or a later definition of the same class."""
    known = registered().get(method.name)
    return known is not None and (known.__module__, known.__qualname__) == (method.__module__, method.__qualname__)


def sources_of_options(cls: type[Method]) -> list[type]:
    """The class and its bases whose constructors' options belong to it: one that takes ``**more`` passes it on."""
    found: list[type] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        found.append(base)
        parameters = inspect.signature(base.__init__).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def options_schema(cls: type[Method]) -> type[BaseModel]:
    """Pydantic model of a method's keyword-only options; the constructor is the schema."""
    fields: dict[str, Any] = {}
    for base in sources_of_options(cls):
        hints = inspect.get_annotations(base.__init__, eval_str=True)
        for p in inspect.signature(base.__init__).parameters.values():
            if p.kind is p.KEYWORD_ONLY and p.name not in fields:
                fields[p.name] = (hints[p.name], ... if p.default is p.empty else p.default)
    return create_model(f"{cls.__name__}Options", __config__=ConfigDict(extra="forbid"), **fields)


PAPER_DEPTH = 12
"""Layers of the encoders that papers name layers of, and for which defaults are written."""


def in_proportion(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Layers of a 12-layer encoder in one of another depth: layer l becomes ``floor(l * depth / 12)``, each once.

    The papers' 2-4 and 9-11 become 1-2 and 4-5 of 6 layers.
    """
    return tuple(dict.fromkeys(layer * depth // PAPER_DEPTH for layer in layers))


def check_options(cls: type[Method], options: dict[str, Any], depth: int = PAPER_DEPTH) -> dict[str, Any]:
    """Options with defaults filled in and types converted.

    Args:
        cls: the method.
        options: as given.
        depth: layers of the encoder; defaults that name layers (``layers``, ``e_layers``, ...) are taken
            :func:`in_proportion`, less those that an option before it has where the paper keeps the two apart; what
            was given stays as it is.

    Returns:
        Every option's value.

    Raises:
        InputError: unknown key or wrong value, naming it.
    """
    schema = options_schema(cls)
    # One layer is written method.e_layers=5 as well as [5].
    fields = schema.model_fields.items()
    tuples = {k for k, f in fields if any(get_origin(a) is tuple for a in (f.annotation, *get_args(f.annotation)))}
    given = {k: (v,) if k in tuples and type(v) in (int, float) else v for k, v in options.items()}
    try:
        model = schema(**given)
    except ValidationError as error:
        raise InputError(describe_validation(error, "method", list(schema.model_fields))) from None
    values = {name: getattr(model, name) for name in schema.model_fields}
    placed: dict[str, tuple[int, ...]] = {}
    for name, value in values.items():
        if name in tuples and name not in given and name.endswith("layers") and value is not None:
            apart = [other for other in placed if not set(values[other]) & set(value)]
            taken = {layer for other in apart for layer in placed[other]}
            placed[name] = tuple(layer for layer in in_proportion(value, depth) if layer not in taken)
            if value and not placed[name]:
                raise InputError(
                    f"method.{name}: an encoder of {depth} layers leaves none for it by default (method.{apart[0]} has "
                    f"{list(placed[apart[0]])}). Say which layers, counted from 0: method.{name}=..."
                )
    return values | placed
