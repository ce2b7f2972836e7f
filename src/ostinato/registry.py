"""Method registry and option validation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from ostinato.choices import Choice, Options, choice_of, tuples, widened
from ostinato.errors import InputError
from ostinato.quoting import shown
from ostinato.validation import describe_validation

if TYPE_CHECKING:
    from ostinato.methods.base import Method

E = TypeVar("E")
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
    """Classes whose options belong to a method: the method, the part or the bases that take its ``**more``."""
    sources: list[type] = []
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        sources.append(base)
        more = next((p for p in _options_of(base) if p.kind is p.VAR_KEYWORD), None)
        if more is None:
            break
        if part := _extra(more.annotation, Options):
            return sources + [kind for kind in type(part).__mro__ if issubclass(kind, Options) and kind is not Options]
    return sources


def options_schema(cls: type[Method]) -> type[BaseModel]:
    """Pydantic model of a method's keyword-only options; the constructor is the schema.

    ``**more: Annotated[Any, PART]`` stands for the options of a part with the defaults PART. An option that chooses a
    part (:func:`ostinato.choices.choice_of`) is checked by its choice alone.
    """
    fields: dict[str, Any] = {}
    for base in sources_of_options(cls):
        for p in [] if issubclass(base, Options) else _options_of(base):
            if p.kind is p.KEYWORD_ONLY:
                found = {p.name: (p.annotation, ... if p.default is p.empty else p.default)}
                if choice := _extra(p.annotation, Choice):
                    found = {p.name: (Annotated[Any, choice], choice.default)}
            elif part := _extra(p.annotation, Options):
                kinds = type(part).model_fields
                found = {name: (kinds[name].rebuild_annotation(), value) for name, value in part.own().items()}
            else:
                continue
            for name, field in found.items():
                fields.setdefault(name, field)
    return create_model(f"{cls.__name__}Options", __config__=ConfigDict(extra="forbid"), **fields)


def _options_of(cls: type) -> list[inspect.Parameter]:
    """Keyword-only and variable keyword parameters of a constructor."""
    parameters = inspect.signature(cls.__init__, eval_str=True).parameters.values()
    return [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]


def _extra(hint: Any, kind: type[E]) -> E | None:
    """The metadata of a kind in an annotation."""
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, kind)), None)


def parts_of(cls: type[Method]) -> dict[str, tuple[Options, ...]]:
    """The options that choose a part, each with the defaults of all its parts."""
    fields = options_schema(cls).model_fields
    return {name: tuple(choice.parts.values()) for name, field in fields.items() if (choice := choice_of(field))}


def defaults_of(cls: type[Method]) -> dict[str, Any]:
    """The default of every option as plain values."""
    fields = options_schema(cls).model_fields
    return {k: dict(f.default) if isinstance(f.default, Options) else f.default for k, f in fields.items()}


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
        depth: layers of the encoder; defaults that name layers (``layers``, ``base.g_layers``, ...) are taken
            :func:`in_proportion`, less those that an option before it has where the paper keeps the two apart; what
            was given stays as it is.

    Returns:
        Every option's value, as plain values; of a chosen part, its name and all its options.

    Raises:
        InputError: unknown key or wrong value, naming it; an option that has no effect, naming where it has one.
    """
    schema = options_schema(cls)
    fields = schema.model_fields
    given = widened(fields, options)
    for key in given:
        if key not in fields and (nested := _of_parts(fields, key)):
            raise InputError(f"method.{key}: unknown key. It is an option of a part: {nested}.")
    try:
        model = schema(**given)
    except ValidationError as error:
        raise InputError(describe_validation(error, "method", list(fields))) from None
    values = {name: getattr(model, name) for name in fields}
    chosen = {name: choice.read(values[name], f"method.{name}") for name in fields
              if (choice := choice_of(fields[name]))}  # fmt: skip
    for name, (other, without) in cls.no_effect.items():
        if values[other] in without and values[name] != fields[name].default:
            one, two = (f"method.{key}={shown(str(values[key]))}" for key in (name, other))
            hint = _or_choose(fields[other], other, without)
            raise InputError(f"{one} has no effect with {two}: leave it out{hint}.")
    layers = _Layers(depth)
    values |= layers.placed({k: v for k, v in values.items() if k not in chosen}, given, tuples(fields), "method")
    for name, part in chosen.items():
        of_part = options.get(name)
        said = dict(part) if isinstance(of_part, Options) else of_part if isinstance(of_part, Mapping) else {}
        own = dict(part)
        values[name] = own | layers.placed(own, said, tuples(type(part).model_fields), f"method.{name}")
    return values


def _or_choose(field: FieldInfo, name: str, without: tuple[Any, ...]) -> str:
    """The other values of an option, where they are few."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    others = [f"method.{name}={value}" for value in values if value not in without]
    return f", or set {' or '.join(others)}" if others else f", or change method.{name}"


def _of_parts(fields: Mapping[str, FieldInfo], key: str) -> str:
    """Where the parts that a method chooses between have an option of this name; empty if nowhere."""
    return " or ".join(
        f"method.{name}={part.name} method.{name}.{key}=VALUE"
        for name, field in fields.items()
        if (choice := choice_of(field))
        for part in choice.parts.values()
        if key in part.own()
    )


class _Layers:
    """Default layers of options, in an encoder of another depth than the papers'."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # of the paper, and here

    def placed(
        self, values: Mapping[str, Any], given: Mapping[str, Any], lists: set[str], where: str
    ) -> dict[str, tuple[int, ...]]:
        """The options that name layers by default, each with its layers here.

        Raises:
            InputError: if none are left for one.
        """
        found: dict[str, tuple[int, ...]] = {}
        for name, value in values.items():
            if name not in lists or name in given or not name.endswith("layers") or value is None:
                continue
            apart = [key for key, (paper, _) in self.seen.items() if not set(paper) & set(value)]
            taken = {layer for key in apart for layer in self.seen[key][1]}
            found[name] = tuple(layer for layer in in_proportion(value, self.depth) if layer not in taken)
            if value and not found[name]:
                raise InputError(
                    f"{where}.{name}: an encoder of {self.depth} layers leaves none for it by default ({apart[0]} has "
                    f"{list(self.seen[apart[0]][1])}). Say which layers, counted from 0: {where}.{name}=..."
                )
            self.seen[f"{where}.{name}"] = (value, found[name])
        return found
