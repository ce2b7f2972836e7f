"""Configuration of a run from TOML and ``key=value`` words."""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato import sections, tomls
from ostinato.defaults import DEFAULT_BACKBONE, LARGEST_SIDE
from ostinato.errors import InputError, did_you_mean
from ostinato.lookup import reference, split_file
from ostinato.paths import user_path
from ostinato.quoting import dotted, quoted, shown
from ostinato.sections import MOVES, RELEARNS, STAYS, Changes, Command, Section, SplitSection, StreamSection

_SHORT = {"method": "name", "backbone": "name", "data": "path", "eval": "data"}
"""Option that a section's bare value sets: ``data=photos/`` is ``data.path=photos/``."""

_MOST_PARTS = 8
_MOST_NESTED = 16


class MethodConfig(Section):
    """``method.*``: name and options of the method, which its constructor checks."""

    model_config = ConfigDict(extra="allow")
    others = STAYS
    name: Annotated[str, MOVES]

    def options(self) -> dict[str, Any]:
        """Given options of the method."""
        return dict(self.model_extra or {})


class BackboneConfig(Section):
    """``backbone.*``."""

    name: Annotated[str, STAYS] = DEFAULT_BACKBONE
    weights: Annotated[str | None, MOVES] = None
    size: Annotated[int | None, STAYS] = Field(None, ge=1, le=LARGEST_SIDE)
    length: Annotated[int | None, STAYS] = Field(None, ge=3)
    readout: Annotated[Literal["cls", "mean", "cls+mean"] | None, STAYS] = None


class DataConfig(SplitSection):
    """``data.*``: training data.

    ``sets`` names data sets in the folder ``path``, one per task; ``alike`` counts classes of the same name in two sets
    as one answer. For ``learn``, ``twins`` is the meaning of a name that is nearly a known one.
    """

    path: Annotated[str, MOVES] = "digits"
    on_error: Annotated[Literal["raise", "skip"], RELEARNS] = "raise"
    sets: Annotated[list[str] | None, RELEARNS] = None
    alike: Annotated[bool, RELEARNS] = False
    image_column: Annotated[str | None, RELEARNS] = None
    text_column: Annotated[str | None, RELEARNS] = None
    label_column: Annotated[str | None, RELEARNS] = None
    classes: Annotated[int | None, RELEARNS] = None
    twins: Annotated[Literal["refuse", "known", "new"], RELEARNS] = "refuse"
    augment: Annotated[Literal["auto", "photo", "glyph", "none"], RELEARNS] = "auto"
    crop: Annotated[float, RELEARNS] = Field(1.0, gt=0, le=1)
    workers: Annotated[int, MOVES] = Field(0, ge=0)


class TrainConfig(Section):
    """``train.*``: fields of the method's recipe to override, and options of a step.

    ``on_divergence`` is the reaction to an exploding loss: stop, or continue with a warning.
    """

    model_config = ConfigDict(extra="allow")
    others = RELEARNS
    accumulate: Annotated[int, RELEARNS] = Field(1, ge=1)
    on_divergence: Annotated[Literal["stop", "warn"], MOVES] = "warn"

    def overrides(self) -> dict[str, Any]:
        """Given fields of the recipe."""
        return dict(self.model_extra or {})


class CheckpointConfig(Section):
    """``checkpoint.*``: a checkpoint follows every task, and every ``every`` steps (0: none)."""

    every: Annotated[int, RELEARNS] = Field(50, ge=0)


class EvalConfig(Section):
    """``eval.*``: the split to score, and for ``learn`` a folder of earlier classes, ``data``.

    ``unknown`` refuses or skips classes in the folder that were not learned. The protocol "batch" also scores batches
    of ``batch`` samples of one task, of which the first ``shots`` choose the task (0: a vote of all).
    """

    split: Annotated[Literal["test", "validation"], RELEARNS] = "test"
    protocol: Annotated[Literal["sample", "batch"], RELEARNS] = "sample"
    batch: Annotated[int | None, RELEARNS] = Field(None, ge=1)
    shots: Annotated[int | None, RELEARNS] = Field(None, ge=0)
    batch_size: Annotated[int, RELEARNS] = Field(64, ge=1)
    data: Annotated[str | None, MOVES] = None
    unknown: Annotated[Literal["refuse", "skip"], RELEARNS] = "refuse"


class RunConfig(Section):
    """All options of a run."""

    method: MethodConfig
    backbone: BackboneConfig = Field(default_factory=lambda: BackboneConfig.model_validate({}))
    data: DataConfig = Field(default_factory=lambda: DataConfig.model_validate({}))
    stream: StreamSection = Field(default_factory=lambda: StreamSection.model_validate({}))
    train: TrainConfig = Field(default_factory=lambda: TrainConfig.model_validate({}))
    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig.model_validate({}))
    eval: EvalConfig = Field(default_factory=lambda: EvalConfig.model_validate({}))
    learn: sections.LearnSection = Field(default_factory=lambda: sections.LearnSection.model_validate({}))
    preprocess: Annotated[Literal["weights", "unit"], STAYS] = "weights"
    seed: Annotated[int, RELEARNS] = Field(0, ge=0)
    device: Annotated[str, MOVES] = "auto"
    precision: Annotated[Literal["auto", "fp32", "bf16"], RELEARNS] = "auto"
    cache: Annotated[str | None, MOVES] = None
    state_cache: Annotated[float, MOVES] = Field(0.0, ge=0)
    compile: Annotated[bool, MOVES] = False
    bundle: Annotated[bool, MOVES] = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values without unset ones, for TOML."""
        return _without_none(self.model_dump(mode="json"))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value


def absolute(config: RunConfig) -> RunConfig:
    """Make the paths of a configuration absolute.

    Raises:
        InputError: if a path is invalid, or has a folder with a name that is not in UTF-8.
    """

    def full(text: str | None, key: str) -> str | None:
        path = user_path(text, key) if text else None
        return _real(path, key) if path is not None and os.path.exists(path) else text

    from ostinato.streams import SOURCES

    method = config.method
    user_path(method.name, "method.name")
    file, named = split_file(method.name)
    if file is not None:
        method = method.model_copy(update={"name": reference(file, named)})
    backbone = {"weights": full(config.backbone.weights, "backbone.weights")}
    encoder = user_path(config.backbone.name, "backbone.name")
    if config.backbone.weights is None and config.backbone.name and os.path.isdir(encoder):
        folder = _real(encoder, "backbone.name")
        backbone = {"name": Path(folder).name, "weights": folder}  # a text encoder

    def full_data(text: str | None, key: str) -> str | None:
        # A known name has priority over a folder of that name, as in open_source.
        return text if text in SOURCES else full(text, key)

    return config.model_copy(
        update={
            "method": method,
            "data": config.data.model_copy(update={"path": full_data(config.data.path, "data.path")}),
            "backbone": config.backbone.model_copy(update=backbone),
            "eval": config.eval.model_copy(update={"data": full_data(config.eval.data, "eval.data")}),
            "cache": _real(user_path(config.cache, "cache"), "cache") if config.cache else None,
        }
    )


def _real(path: Path, key: str) -> str:
    """Resolve links, and check that a file of options can hold the path."""
    text = os.path.realpath(path)
    _check_text(text, key)
    return text


def flat(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """List the dotted keys of nested options."""
    keys: list[str] = []
    for key, value in tree.items():
        keys += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """Parse ``key=value`` words into nested options.

    Numbers, booleans and lists are read as TOML, numbers with commas as lists, and other values as text without quotes.
    Text options such as paths are kept as typed.

    Raises:
        InputError: if a word has no ``=``, or two words contradict each other.
    """
    out: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        key = key.strip()
        if not sign or not key:
            raise InputError(
                f"Options must be written key=value, got {quoted(pair)}. For example: data=photos/ stream.step=5"
            )
        put(out, key, _unquoted(text) if _is_text(key) else _value(text), pair)
    return out


def put(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set a dotted key in nested options in place, expanding ``data=X`` to ``data.path=X``.

    Args:
        tree: nested options.
        key: dotted key.
        value: value of the option.
        source: word or file of the option, for messages.

    Raises:
        InputError: if the key has empty or too many parts, or contradicts another.
    """
    parts = key.split(".") if isinstance(value, dict) else _parts(key)
    if not all(part.strip() for part in parts) or len(parts) > _MOST_PARTS:
        raise InputError(
            f"{shown(source)}: the name of an option must have at most {_MOST_PARTS} parts, none empty, got "
            f"{quoted(key)}. For example: stream.step"
        )
    node: dict[str, Any] = tree
    for depth, part in enumerate(parts[:-1]):
        inner = node.setdefault(part, {})
        if isinstance(inner, str) and parts[0] == "method" and depth > 0:  # method.base=l2p before method.base.top_k=5
            inner = node[part] = _named(inner)
        if not isinstance(inner, dict):
            raise InputError(f"{shown(source)}: {quoted(part)} already has the plain value {quoted(inner)}.")
        node = inner
    last, known = parts[-1], node.get(parts[-1])
    if parts[0] == "method" and isinstance(known, dict) and isinstance(value, str) and "name" not in known:
        known["name"] = value
    elif last in node:
        raise InputError(f"{shown(source)}: {dotted(*parts)} is given twice. Keep one.")
    else:
        node[last] = value


def _parts(key: str) -> list[str]:
    """Split a dotted key, expanding abbreviations."""
    return [key, _SHORT[key]] if key in _SHORT else key.split(".")


def _is_text(key: str) -> bool:
    """Tell whether an option is text, such as a path, even if the value looks like a number."""
    kind: Any = RunConfig
    for part in _parts(key):
        fields = getattr(kind, "model_fields", {})
        if part not in fields:
            return key == "out"
        kind = fields[part].annotation
    return kind in (str, str | None)


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text


def _value(text: str) -> Any:
    for form in (text, f"[{text}]"):
        try:
            value = tomls.loads(f"v = {form}")["v"]
        except tomls.NotToml:
            continue
        if form == text and isinstance(value, bool | int | float | list | str):
            return value
        if form != text and isinstance(value, list) and all(isinstance(v, int | float) for v in value):
            return value
    return text


def read_toml(path: Path) -> dict[str, Any]:
    """Read options from a TOML file, with the abbreviations of the command line.

    Raises:
        InputError: if the file is missing or not TOML, naming the line.
    """
    out: dict[str, Any] = {}
    for key, value in tomls.read(path, f"-c {shown(str(path))}").items():
        put(out, key, value, str(path))
    return out


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge options section by section; ``over`` has priority over ``base``.

    If ``over`` chooses another part of a method, such as ``method.base``, the part's options in ``base`` are dropped.
    """
    out = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = (_merge_method if key == "method" else merge)(out[key], value) if both else value
    return out


def _merge_method(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge two layers of ``method.*``; a part may be given by its name alone."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if not any(isinstance(part, dict) for part in (old, value)) or key == "name":
            out[key] = value
            continue
        before, after = _named(old), _named(value)
        other = "name" in before and after.get("name", before["name"]) != before["name"]
        out[key] = value if other or not after else before | after
    return out


def _named(part: Any) -> dict[str, Any]:
    """Expand the name of a part to a dict; empty if the value is no part."""
    return {"name": part} if isinstance(part, str) else part if isinstance(part, dict) else {}


def build_config(*layers: dict[str, Any]) -> RunConfig:
    """Merge layers of options, later ones over earlier ones, and check the configuration.

    Raises:
        InputError: if a key is unknown or a value is wrong, naming the first.
    """
    tree: dict[str, Any] = {}
    for layer in layers:
        _check_plain(layer)
        tree = merge(tree, layer)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(_explain(error)) from None


def data_config(options: dict[str, Any]) -> DataConfig:
    """Check options of ``data.*`` alone; errors are those of :func:`build_config`."""
    return build_config({"method": {"name": ""}, "data": options}).data


def _leaves(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Changes]]:
    """Yield all options by dotted key, ``*`` for those without a field, with the commands that may change them."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, next(extra for extra in field.metadata if isinstance(extra, Changes))
    if issubclass(kind, Section) and kind.others is not None:
        yield f"{prefix}*", kind.others


def changeable(command: Command) -> list[str]:
    """List the options that a command may change by dotted key, sorted; ``section.*`` stands for a whole section."""
    allowed = {key: changes.within(command) for key, changes in _leaves(RunConfig)}
    found: set[str] = set()
    for key in (key for key, yes in allowed.items() if yes):
        section = key.rpartition(".")[0]
        whole = section and all(yes for other, yes in allowed.items() if other.startswith(f"{section}."))
        found.add(f"{section}.*" if whole else key)
    return sorted(found)


def check_changes(command: Command, overrides: dict[str, Any]) -> None:
    """Check that a command may change options; :func:`build_config` checks for unknown ones.

    Raises:
        InputError: if an option may not change, naming it and those that may.
    """
    rules = dict(_leaves(RunConfig))
    for key in flat(overrides):
        rule = rules.get(key, rules.get(f"{key.partition('.')[0]}.*"))
        if rule is not None and not rule.within(command):
            why = "repeats a run" if command == "resume" else "keeps what was learned"
            raise InputError(
                f"{key}: cannot change in '{command}', which {why}. May change: {', '.join(changeable(command))}."
            )


def _check_plain(value: Any, *key: Any) -> None:
    """Check values for properties of all options.

    Raises:
        InputError: if a value is nested too deeply, no finite number, or no text that a file can hold.
    """
    if len(key) > _MOST_NESTED:
        raise InputError(f"{dotted(*key[:4])}: must be nested at most {_MOST_NESTED} deep.")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise InputError(f"{dotted(*key, name)}: the name of an option must be text, not {quoted(name)}.")
            _check_plain(inner, *key, name)
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            _check_plain(inner, *key, i)
    elif isinstance(value, str):
        _check_text(value, dotted(*key))
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{dotted(*key)}: must be a finite number, got {value}.")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{dotted(*key)}: must be less than 2**63 in size, got {quoted(value)}.")
    elif isinstance(value, datetime.date | datetime.time):
        kind = type(value).__name__
        raise InputError(
            f"{dotted(*key)}: must be a number, text, true, false or a list, not a {kind}; quote it as text."
        )


def _check_text(text: str, key: str) -> None:
    """Check that a file of options can hold a text.

    Raises:
        InputError: if it has NUL characters, or characters that are not in UTF-8.
    """
    if "\0" in text:
        raise InputError(f"{key}: must be text without NUL characters, got {quoted(text)}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{key}: must be text in UTF-8, but character {error.start} of {quoted(text)} is not. Rename the file."
        ) from None


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    loc = [str(part) for part in first["loc"]]
    key = dotted(*loc)
    if first["type"] == "extra_forbidden":
        section: Any = RunConfig
        for part in loc[:-1]:
            section = section.model_fields[part].annotation
        known = [".".join([*loc[:-1], name]) for name in section.model_fields]
        return f"{key}: unknown key. {did_you_mean(key, known)}"
    if first["type"] == "missing":
        return f"{key}: is required. For example: ostinato run simplecil data=photos/"
    return f"{key}: {first['msg']}, got {quoted(first['input'])}."
