"""Files of published tables.

A table is a TOML file: ``format`` (1, may be left out), ``title``, ``source``, ``protocol``, ``verified`` and ``note``
(text), ``data`` (data set of rows without a preset), ``options`` (words such as ``stream.step=5`` for all rows), a list
``row`` and, if every row is run several times, a list ``variant``. ``rows_of`` takes the rows and ``options`` of
another table, without what it quotes: its rows come before those of the list ``row``, its options before ``options``,
which override them. A file is named from the directory of this one.

A row has a ``name`` and optionally a ``label``; ``preset`` or ``method``, or ``not_run`` with the reason why it is only
quoted; ``options``; ``published`` (percent, keys of :data:`ostinato.presets.METRICS`); ``published_costs`` (keys of
:data:`Costs`), one for all variants; and a ``note``. The best of the rows with ``bound = true`` is the table's upper
bound.

A variant has a ``name`` and ``options``, which those of a row override. The runs of a row are then named
``row-variant``, and it quotes results as ``published_in.<variant>``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato import tomls
from ostinato.config import flat, parse_overrides
from ostinato.errors import InputError, did_you_mean
from ostinato.presets import Percent, Preset, read_preset, table_file
from ostinato.quoting import quoted, shown
from ostinato.validation import describe_validation

_MOST_RUNS = 10_000

Quoted = dict[
    Literal[
        "last", "average", "mean_task", "forgetting", "task_id", "task_incremental", "task_incremental_forgetting"
    ],
    Percent,
]  # fmt: skip
Costs = dict[
    Literal["trainable_parameters", "train_seconds", "last_eval_seconds"],
    Annotated[float, Field(gt=0, allow_inf_nan=False)],
]  # fmt: skip
"""Published parameters of a task, seconds of training in all, and seconds of the last evaluation."""
Words = Annotated[str, Field(max_length=10_000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f-\x9f]*$")]
"""Text without control characters, except line breaks and tabs."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Row(_Part):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$", max_length=100)
    label: Words | None = None
    preset: Words | None = None
    method: Words | None = None
    data: Words | None = None
    options: list[str] = []
    published: Quoted = {}
    published_in: dict[str, Quoted] = {}
    published_costs: Costs = {}
    note: Words | None = None
    not_run: Words | None = None
    bound: bool = False


class _Variant(_Part):
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.]*$", max_length=100)
    options: list[str] = []


class _File(_Part):
    format: Literal[1] = 1
    title: Words
    source: Words | None = None
    protocol: Words | None = None
    verified: Words | None = None
    note: Words | None = None
    data: Words | None = None
    options: list[str] = []
    rows_of: Words | None = None
    row: list[_Row] = Field([], max_length=_MOST_RUNS)
    variant: list[_Variant] = Field([], max_length=_MOST_RUNS)


@dataclass(frozen=True)
class Row:
    """One run of a table.

    Attributes:
        name: unique name, also of the run's directory.
        base: name of the row in the file, shared by its variants.
        variant: name of the variant, or None.
        label: description.
        method: registered name; None if the row is only quoted.
        preset: preset of the row, or None.
        words: options as on the command line.
        data: name of the data set, or None.
        published: published results in percent.
        costs: published costs, in parameters and seconds.
        note: remark for the reader.
        not_run: reason why the row is only quoted, or None.
        bound: whether the row is an upper bound of the others.
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
    costs: dict[str, float]
    note: str | None
    not_run: str | None
    bound: bool


@dataclass(frozen=True)
class Table:
    """A published table; the module describes its file."""

    name: str
    title: str
    source: str | None
    protocol: str | None
    verified: str | None
    note: str | None
    rows: tuple[Row, ...]

    def choose(self, names: Sequence[str]) -> list[Row]:
        """Select runs by their name, row or variant, in the table's order; all if ``names`` is empty.

        Raises:
            InputError: if a name is unknown.
        """
        known = list({name: None for row in self.rows for name in (row.name, row.base, row.variant) if name})
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"{self.name} has no row {quoted(unknown[0])}. {did_you_mean(unknown[0], known)}")
        return [row for row in self.rows if not names or {row.name, row.base, row.variant} & {*names}]


def read_table(name: str) -> Table:
    """Read a table of the package by name, or one from a TOML file.

    Raises:
        InputError: if there is none, or its file is wrong, naming the place.
    """
    path = table_file(name)
    where = shown(str(path))
    file = _read_file(path)
    if file.rows_of is not None:
        other = _without_quotes(file.rows_of, path)
        try:
            options = replace_words(other.options, file.options)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        file = file.model_copy(update={"row": other.row + file.row, "options": list(options)})
    if not file.row:
        raise InputError(f"{where}: a table must have at least 1 row. Add [[row]], or rows_of with a table's name.")
    names = Counter([row.name for row in file.row] + [variant.name for variant in file.variant])
    if twice := [name for name, times in names.items() if times > 1]:
        raise InputError(f"{where}: names of rows must be unique, {twice[0]!r} is given twice. Rename one.")
    if (runs := len(file.row) * max(1, len(file.variant))) > _MOST_RUNS:
        raise InputError(f"{where}: a table must have at most {_MOST_RUNS} runs, got {runs}.")
    rows = [_read_row(row, variant, file, where) for row in file.row for variant in file.variant or (None,)]
    table = path.stem if name.endswith(".toml") else name
    return Table(table, file.title, file.source, file.protocol, file.verified, file.note, tuple(rows))


def _read_file(path: Path) -> _File:
    where = shown(str(path))
    tree = tomls.read(path, where)
    version = tree.get("format", 1)
    if version != 1 or isinstance(version, bool):
        raise InputError(f"{where}: format must be 1, got {quoted(version)}. Install a newer ostinato.")
    try:
        return _File.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, tree)}") from None


def _without_quotes(name: str, path: Path) -> _File:
    """Read the table that ``rows_of`` names in the file ``path``, without what its rows quote and say of that."""
    where = f"{shown(str(path))}: rows_of"
    try:
        other = _read_file(table_file(str(path.parent / name) if name.endswith(".toml") else name))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if other.rows_of is not None:
        raise InputError(f"{where} must name a table with rows, and {quoted(name)} takes those of another.")
    nothing: dict[str, Any] = {"published": {}, "published_in": {}, "published_costs": {}}
    rows: list[_Row] = []
    for row in other.row:
        if row.not_run is None:
            quotes = bool(row.published or row.published_in or row.published_costs)
            rows.append(row.model_copy(update=nothing | ({"note": None} if quotes else {})))
    return other.model_copy(update={"row": rows})


def _explain(error: ValidationError, tree: dict[str, Any]) -> str:
    """Describe the first problem with its row and key."""
    place = error.errors(include_url=False, include_context=False)[0]["loc"]
    parts = {"row": _Row, "variant": _Variant}
    if len(place) < 3 or place[0] not in parts:
        return describe_validation(error, "", list(_File.model_fields))
    entry = tree[str(place[0])][place[1]]
    name = entry.get("name") if isinstance(entry, dict) else None
    named = f"{place[0]} {quoted(name)}, " if isinstance(name, str) else ""
    return named + describe_validation(error, "", list(parts[str(place[0])].model_fields))


def _read_row(row: _Row, variant: _Variant | None, file: _File, path: str) -> Row:
    where = f"{path}: row {row.name!r}"
    if sum(x is not None for x in (row.preset or row.method, row.not_run)) != 1:
        raise InputError(f"{where} must have a preset or a method, or not_run with the reason why it is only quoted.")
    known = [v.name for v in file.variant]
    if unknown := [name for name in row.published_in if name not in known]:
        hint = did_you_mean(unknown[0], known) if known else "The table has none."
        raise InputError(f"{where}: published_in: there is no variant {quoted(unknown[0])}. {hint}")
    if variant is not None and row.published:
        raise InputError(f"{where}: published must name a variant: use published_in.<variant>.")
    published = row.published_in.get(variant.name, {}) if variant else row.published
    try:
        preset = read_preset(row.preset, row.method) if row.preset else None
        words = replace_words(file.options, variant.options if variant else ())
        words = () if row.not_run else replace_words(words, row.options)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Row(
        name=f"{row.name}-{variant.name}" if variant else row.name,
        base=row.name,
        variant=variant.name if variant else None,
        label=row.label or row.name,
        method=preset.method if preset else row.method,
        preset=preset,
        words=words,
        data=row.data or (preset.data if preset else file.data),
        published={str(metric): value for metric, value in published.items()},
        costs={str(key): value for key, value in row.published_costs.items()},
        note=row.note,
        not_run=row.not_run,
        bound=row.bound,
    )


def replace_words(words: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """Merge words ``key=value``; those of ``over`` replace words with the same key.

    Raises:
        InputError: if a word has no ``=``, or a list has a key twice.
    """
    parse_overrides(list(words))
    parse_overrides(list(over))
    merged: dict[str, str] = {}
    for word in (*words, *over):
        (key,) = flat(parse_overrides([word]))
        merged[key] = word
    return tuple(merged.values())
