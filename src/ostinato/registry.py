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
    """Class decorator that registers a method under ``name``: letters, digits, "_" and "-".

    Raises:
        InputError: if the name has other characters, or is taken by another class.
    """
    if not is_plain_name(name):
        raise InputError(f"register: a name must have only letters, digits, '_' and '-', got {name!r}.")

    def add(cls: M) -> M:
        taken = _METHODS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(f"register: the name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
        _METHODS[name] = cls
        cls.name = name
        return cls

    return add


def is_plain_name(name: str) -> bool:
    """Tell whether a text can be the name of a method, unlike a path."""
    return re.fullmatch(r"[\w-]+", name) is not None


def registered() -> dict[str, type[Method]]:
    """Registered methods by name."""
    return dict(sorted(_METHODS.items()))


def restore(known: dict[str, type[Method]]) -> None:
    """Replace all registered methods."""
    _METHODS.clear()
    _METHODS.update(known)


def is_registered(method: type[Method]) -> bool:
    """Tell whether a method, or a later definition of its class, is registered under its name."""
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
    """Metadata of a kind in an annotation."""
    return next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, kind)), None)


def parts_of(cls: type[Method]) -> dict[str, tuple[Options, ...]]:
    """Options that choose a part, each with the default options of all its parts."""
    fields = options_schema(cls).model_fields
    return {name: tuple(choice.parts.values()) for name, field in fields.items() if (choice := choice_of(field))}


def defaults_of(cls: type[Method]) -> dict[str, Any]:
    """Defaults of all options as plain values."""
    fields = options_schema(cls).model_fields
    return {k: dict(f.default) if isinstance(f.default, Options) else f.default for k, f in fields.items()}


PAPER_DEPTH = 12
"""Number of layers of the papers' encoders, for which default layers are given."""


def in_proportion(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Map layers of a 12-layer encoder to another depth: layer l becomes ``floor(l * depth / 12)``, each once.

    For 6 layers, 2-4 and 9-11 become 1-2 and 4-5.
    """
    return tuple(dict.fromkeys(layer * depth // PAPER_DEPTH for layer in layers))


def check_options(cls: type[Method], options: dict[str, Any], depth: int = PAPER_DEPTH) -> dict[str, Any]:
    """Check options, fill in defaults and convert types.

    Args:
        cls: class of the method.
        options: given options.
        depth: number of layers of the encoder. Default layers (``layers``, ``base.g_layers``, ...) are scaled by
            :func:`in_proportion`, without layers of an earlier option if the paper keeps the two apart.

    Returns:
        Plain values of all options; for a chosen part, its name and all its options.

    Raises:
        InputError: if a key is unknown, a value is wrong, or an option has no effect, naming where it has one.
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
            given_option, condition = (f"method.{key}={shown(str(values[key]))}" for key in (name, other))
            hint = _or_choose(fields[other], other, without)
            raise InputError(f"{given_option} has no effect with {condition}: leave it out{hint}.")
    layers = _Layers(depth)
    values |= layers.placed({k: v for k, v in values.items() if k not in chosen}, given, tuples(fields), "method")
    for name, part in chosen.items():
        value = options.get(name)
        explicit = dict(part) if isinstance(value, Options) else value if isinstance(value, Mapping) else {}
        filled = dict(part)
        values[name] = filled | layers.placed(filled, explicit, tuples(type(part).model_fields), f"method.{name}")
    return values


def _or_choose(field: FieldInfo, name: str, without: tuple[Any, ...]) -> str:
    """Suggest other values of an option, if it lists them."""
    values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    others = [f"method.{name}={value}" for value in values if value not in without]
    return f", or set {' or '.join(others)}" if others else f", or change method.{name}"


def _of_parts(fields: Mapping[str, FieldInfo], key: str) -> str:
    """List the parts of a method that have an option of this name; may be empty."""
    return " or ".join(
        f"method.{name}={part.name} method.{name}.{key}=VALUE"
        for name, field in fields.items()
        if (choice := choice_of(field))
        for part in choice.parts.values()
        if key in part.own()
    )


class _Layers:
    """Default layers of options, scaled to the depth of an encoder."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}  # in the paper, and scaled

    def placed(
        self, values: Mapping[str, Any], given: Mapping[str, Any], lists: set[str], where: str
    ) -> dict[str, tuple[int, ...]]:
        """Scale options with default layers.

        Raises:
            InputError: if no layer is left for an option.
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
                    f"{list(self.seen[apart[0]][1])}). Give its layers, counted from 0: {where}.{name}=..."
                )
            self.seen[f"{where}.{name}"] = (value, found[name])
        return found
