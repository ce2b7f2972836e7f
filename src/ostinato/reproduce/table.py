"""Published tables as files: rows of ordinary runs.

A table is a TOML file: ``title``, ``source``, ``protocol`` and ``note`` (text), ``data`` (name of the data set of
rows without a preset), ``options`` (words such as ``stream.step=5`` that all rows share), a list ``row`` and, where
every row is to be run several times, a list ``variant``. A row has a ``name``, and a ``label`` where that says too
little; ``preset`` or ``method``; its own ``options``; ``published`` (percent, keys of
:data:`ostinato.presets.METRICS`); a ``note``; or, in place of a preset or method, ``not_run``: why it is only quoted. A
variant has a ``name`` and ``options``, over which a row's own win; the runs of a row are then called ``row-variant``,
and it quotes results as ``published_in.<variant>``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato.config import flat, parse_overrides
from ostinato.errors import InputError, did_you_mean
from ostinato.presets import Preset, read_preset, table_file
from ostinato.registry import describe_validation

Quoted = dict[Literal["last", "average", "mean_task", "forgetting", "task_id", "task_incremental"], float]


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    label: str | None = None
    preset: str | None = None
    method: str | None = None
    data: str | None = None
    options: tuple[str, ...] = ()
    published: Quoted = {}
    published_in: dict[str, Quoted] = {}
    note: str | None = None
    not_run: str | None = None


class _Variant(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.]*$")
    options: tuple[str, ...] = ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    source: str | None = None
    protocol: str | None = None
    note: str | None = None
    data: str | None = None
    options: tuple[str, ...] = ()
    row: tuple[_Row, ...] = Field(min_length=1)
    variant: tuple[_Variant, ...] = ()


@dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        name: unique in the table; directory of the run.
        base: name of the row in the file, which several runs share where the table has variants.
        variant: name of the variant, or None.
        label: what it is, in words.
        method: registered name; None where the row is only quoted.
        preset: options that it starts from, or None.
        words: its options as on the command line.
        data: name of its data set, or None.
        published: percent.
        note: for the reader.
        not_run: why it is only quoted, or None.
    """

    name: str
    base: str
    variant: str | None
    label: str
    method: str | None
    preset: Preset | None
    words: tuple[str, ...]
    data: str | None
    published: dict[str, float]
    note: str | None
    not_run: str | None


@dataclass(frozen=True)
class Table:
    """A published table; see the module for the fields of its file."""

    name: str
    title: str
    source: str | None
    protocol: str | None
    note: str | None
    rows: tuple[Row, ...]

    def choose(self, names: Sequence[str]) -> list[Row]:
        """Runs by their name or that of their row or variant, in the table's order; all without names.

        Raises:
            InputError: unknown name.
        """
        known = list({name: None for row in self.rows for name in (row.name, row.base, row.variant) if name})
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"{self.name} has no row {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        return [row for row in self.rows if not names or {row.name, row.base, row.variant} & {*names}]


def read_table(name: str) -> Table:
    """A table that comes with the package by name, or one from a TOML file.

    Raises:
        InputError: if there is none, or its file is wrong, naming the place.
    """
    path = table_file(name)
    try:
        file = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not TOML: {error}.") from None
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        inside = {"row": _Row, "variant": _Variant}.get(str(place[0]), _File) if len(place) > 1 else _File
        known = list(inside.model_fields)
        raise InputError(f"{path}: {describe_validation(error, '', known)}") from None
    names = [row.name for row in file.row] + [variant.name for variant in file.variant]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{path}: row {twice[0]!r} is there twice; rename one.")
    rows = [_read_row(row, variant, file, str(path)) for row in file.row for variant in file.variant or (None,)]
    own = path.stem if name.endswith(".toml") else name
    return Table(own, file.title, file.source, file.protocol, file.note, tuple(rows))


def _read_row(row: _Row, variant: _Variant | None, file: _File, path: str) -> Row:
    where = f"{path}: row {row.name!r}"
    if sum(x is not None for x in (row.preset or row.method, row.not_run)) != 1:
        raise InputError(f"{where} must have a preset or a method, or say why it is only quoted as not_run.")
    known = [v.name for v in file.variant]
    if unknown := [name for name in row.published_in if name not in known]:
        raise InputError(f"{where}: published_in names no variant {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
    if variant is not None and row.published:
        raise InputError(f"{where} quotes one result for several runs; say which as published_in.<variant>.")
    published = row.published_in.get(variant.name, {}) if variant else row.published
    preset = read_preset(row.preset, row.method) if row.preset else None
    words = replace_words(file.options, variant.options if variant else ())
    return Row(
        name=f"{row.name}-{variant.name}" if variant else row.name,
        base=row.name,
        variant=variant.name if variant else None,
        label=row.label or row.name,
        method=preset.method if preset else row.method,
        preset=preset,
        words=() if row.not_run else replace_words(words, row.options),
        data=row.data or (preset.data if preset else file.data),
        published={str(metric): value for metric, value in published.items()},
        note=row.note,
        not_run=row.not_run,
    )


def replace_words(words: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """Words ``key=value`` with those of ``over`` in place of the ones with the same key.

    Raises:
        InputError: if one has no ``=``, or ``over`` has a key twice.
    """
    parse_overrides(list(words))
    parse_overrides(list(over))
    merged: dict[str, str] = {}
    for word in (*words, *over):
        (key,) = flat(parse_overrides([word]))
        merged[key] = word
    return tuple(merged.values())
