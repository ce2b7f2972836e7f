"""Published tables, run row by row: every row is an ordinary run whose command is printed.

A table is a TOML file: ``title``, ``source``, ``protocol`` and ``note`` (text), ``data`` (name of the data set of
rows without a preset), ``options`` (words such as ``stream.step=5`` that all rows share) and a list ``row``. A row has
a ``name``, and a ``label`` where that says too little; ``preset`` or ``method``; its own ``options``; ``published``
(percent, keys of :data:`ostinato.presets.METRICS`); a ``note``; or, in place of a preset or method, ``not_run``: why
it is only quoted.
"""

from __future__ import annotations

import csv
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato.config import DEFAULT_BACKBONE, RunConfig, absolute, build_config, flat, parse_overrides
from ostinato.engine.rundir import RunDir, read_json, write_json
from ostinato.errors import DataError, InputError, Interrupted, OstinatoError, did_you_mean
from ostinato.presets import DATA, METRICS, Preset, preset_names, read_preset, table_file, table_names
from ostinato.registry import check_options, describe_validation, get_method
from ostinato.report.console import Reporter
from ostinato.report.tables import NOTHING, human_bytes, human_count, percent, replace_between, seconds

COSTS = {
    "trainable_parameters": ("trainable", human_count),
    "stored_bytes": ("stored", human_bytes),
    "train_seconds": ("train s", seconds),
    "eval_seconds": ("eval s", seconds),
}
"""Costs in a summary: heading and form."""

_HEADINGS = {
    "last": "last %",
    "average": "average %",
    "mean_task": "mean over tasks %",
    "forgetting": "forgetting %",
    "task_id": "task id %",
    "task_incremental": "task-incremental %",
}

_MOVABLE = ("data.path", "data.workers", "backbone.weights", "device", "cache", "state_cache", "compile")
"""Options that say where things are and what the machine has; a resumed row takes them from the command."""

_ELSEWHERE = (*_MOVABLE, "checkpoint.every")
"""What may differ between two calls of the same experiment."""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    label: str | None = None
    preset: str | None = None
    method: str | None = None
    data: str | None = None
    options: tuple[str, ...] = ()
    published: dict[Literal["last", "average", "mean_task", "forgetting", "task_id", "task_incremental"], float] = {}
    note: str | None = None
    not_run: str | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    title: str
    source: str | None = None
    protocol: str | None = None
    note: str | None = None
    data: str | None = None
    options: tuple[str, ...] = ()
    row: tuple[_Row, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        name: unique in the table; directory of the run.
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
        """Rows by name, in the table's order; all without names.

        Raises:
            InputError: unknown name.
        """
        known = [row.name for row in self.rows]
        if unknown := [name for name in names if name not in known]:
            raise InputError(f"{self.name} has no row {unknown[0]!r}. {did_you_mean(unknown[0], known)}")
        return [row for row in self.rows if not names or row.name in names]


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
        inside = len(error.errors()[0]["loc"]) > 1
        known = list((_Row if inside else _File).model_fields)
        raise InputError(f"{path}: {describe_validation(error, '', known)}") from None
    rows: list[Row] = []
    for row in file.row:
        where = f"{path}: row {row.name!r}"
        if sum(x is not None for x in (row.preset or row.method, row.not_run)) != 1:
            raise InputError(f"{where} must have a preset or a method, or say why it is only quoted as not_run.")
        if row.name in [r.name for r in rows]:
            raise InputError(f"{where} is there twice; rename one.")
        preset = read_preset(row.preset, row.method) if row.preset else None
        method = preset.method if preset else row.method
        data = row.data or (preset.data if preset else file.data)
        words = () if row.not_run else replace_words(file.options, row.options)
        quoted = {str(metric): value for metric, value in row.published.items()}
        label = row.label or row.name
        rows.append(Row(row.name, label, method, preset, words, data, quoted, row.note, row.not_run))
    own = path.stem if name.endswith(".toml") else name
    return Table(own, file.title, file.source, file.protocol, file.note, tuple(rows))


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


@dataclass(frozen=True)
class Given:
    """The options of the command, sorted.

    Attributes:
        out: directory of the table.
        data: by name of the data set; "" for a bare ``data=``.
        weights: files by backbone; "" for a bare ``backbone.weights=``.
        words: options for every row.
    """

    out: Path
    data: dict[str, str]
    weights: dict[str, str]
    words: tuple[str, ...]


def sort_options(table: Table, words: Sequence[str]) -> Given:
    """Tell data, weights and the directory from options for every row.

    Raises:
        InputError: for what cannot be said of a whole table.
    """
    names = {row.data for row in table.rows if row.data} | set(DATA)
    out, data, weights, rest = Path("runs") / table.name.replace("/", "-"), {}, {}, []
    for word in words:
        key, _, value = word.partition("=")
        if key == "out":
            out = Path(value)
        elif key in ("data", "data.path") or key.removeprefix("data.") in names:
            data["" if key in ("data", "data.path") else key.removeprefix("data.")] = value
        elif key.startswith("backbone.weights"):
            weights[key.removeprefix("backbone.weights").removeprefix(".")] = value
        elif key in ("method", "method.name"):
            raise InputError(f"{key}: the table's rows say which method they run; choose rows by name instead.")
        else:
            rest.append(word)
    parse_overrides(rest)
    return Given(out, data, weights, tuple(rest))


@dataclass(frozen=True)
class Plan:
    """A row with everything that decides its run.

    Attributes:
        row: the row.
        config: checked; its data path is the default where no data were given and the row needs some.
        words: options after the preset, where data and weights are too.
        run: directory.
        missing: what is not there, with how to get it; empty if the row can run.
    """

    row: Row
    config: RunConfig
    words: tuple[str, ...]
    run: RunDir
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command that does the same run."""
        row = self.row
        preset = []
        if row.preset:
            benchmark, stem = row.preset.name.split("/")
            preset = ["-p", benchmark if stem == row.method else row.preset.name]
        return shlex.join(["ostinato", "run", str(row.method), *preset, *self.words, f"out={self.run.root}"])

    @property
    def state(self) -> Literal["finished", "begun", "new"]:
        """Where the run stands."""
        if self.run.summary.exists():
            return "finished"
        return "begun" if self.run.config.exists() else "new"

    def check_same(self) -> None:
        """Make sure that what lies in the run's directory is this experiment.

        Raises:
            InputError: if it has other options or, when finished, other data or weights.
        """
        if self.state == "new":
            return
        there, now = self.run.read_config(), absolute(self.config)
        old, new = ({k: v for k, v in _leaves(c.to_dict()) if k not in _ELSEWHERE} for c in (there, now))
        absent = "not given"
        changed = [f"{k} was {old.get(k, absent)} and is {new.get(k, absent)} now" for k in sorted(old | new)
                   if old.get(k) != new.get(k)]  # fmt: skip
        keys = flat(parse_overrides(list(self.words)))
        if self.state == "finished" and "data.path" in keys and there.data.path != now.data.path:
            changed.append(f"data was {there.data.path} and is {now.data.path} now")
        weights = now.backbone.weights
        if self.state == "finished" and weights and Path(weights).is_file():
            from ostinato.backbones.weights import file_sha256

            origin = self.run.read_record()["backbone"]
            if origin and origin["sha256"] != file_sha256(Path(weights)):
                changed.append(f"the backbone's weights were other ones than {weights}")
        if changed:
            raise InputError(
                f"{self.run.root} holds this row with other options: {'; '.join(changed)}. Give the same options, "
                "another out=, or remove that directory."
            )


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def plan_rows(table: Table, rows: Sequence[Row], given: Given, *, fetch: bool = False) -> list[Plan]:
    """Check all rows before the first one runs.

    Args:
        table: the table.
        rows: those chosen; quoted ones are left out.
        given: options of the command.
        fetch: download, now, named data and weights that unfinished rows need; otherwise they count as there.

    Returns:
        A plan per row that can be run somewhere.

    Raises:
        InputError: wrong options, or a directory that holds something else.
    """
    from ostinato.learner import check_recipe

    rows = [row for row in rows if row.not_run is None]
    needed = list(dict.fromkeys(row.data for row in rows if row.data))
    known = {row.data for row in table.rows}
    if wrong := [name for name in given.data if name and name not in known]:
        raise InputError(f"data.{wrong[0]}: {table.name} has no row on it. Its data: {sorted(filter(None, known))}.")
    plans = []
    for row in rows:
        words = replace_words(row.words, given.words)
        # A bare data= is the data set of the first row chosen; the others are named.
        data = given.data.get(row.data or "") or (given.data.get("") if row.data in (None, *needed[:1]) else None)
        if data is not None:
            words = replace_words(words, [f"data={data}"])
        layers = (row.preset.options if row.preset else {}, {"method": {"name": row.method}})
        config = build_config(layers[0], parse_overrides(list(words)), layers[1])
        name = config.backbone.name
        file = given.weights.get(name) or given.weights.get("")
        if file is not None:
            words = replace_words(words, [f"backbone.weights={file}"])
            config = build_config(layers[0], parse_overrides(list(words)), layers[1])
        check_options(get_method(str(row.method)), config.method.options())
        check_recipe(config.train.overrides())
        plans.append(Plan(row, config, words, RunDir(given.out / row.name), ()))
    backbones = list(dict.fromkeys(plan.config.backbone.name for plan in plans))
    if "" in given.weights and len(backbones) > 1:
        raise InputError(
            f"backbone.weights: the rows use {len(backbones)} backbones; say which file is whose: "
            + " ".join(f"backbone.weights.{name}=FILE" for name in backbones)
        )
    if unknown := [name for name in given.weights if name and name not in backbones]:
        raise InputError(f"backbone.weights.{unknown[0]}: {did_you_mean(unknown[0], backbones)}")
    for plan in plans:
        plan.check_same()
    return [Plan(p.row, p.config, p.words, p.run, _missing(p, fetch)) for p in plans]


def _missing(plan: Plan, fetch: bool) -> tuple[str, ...]:
    """What an unfinished row lacks, each with how to get it."""
    if plan.state == "finished":
        return ()
    missing, data = [], plan.row.data
    if data is not None and "data.path" not in flat(parse_overrides(list(plan.words))):
        if plan.state == "new":
            missing.append(f"data of {data}: give data.{data}=PATH, {DATA.get(data, 'a folder of images')}")
    elif problem := _data_problem(plan.config.data.path, fetch):
        missing.append(f"data: {problem}")
    backbone = plan.config.backbone
    if backbone.weights is not None:
        if not Path(backbone.weights).expanduser().is_file():
            missing.append(f"weights: there is no file at {backbone.weights}")
    elif fetch and not missing and (problem := _weights_problem(backbone.name)):
        # Without network a download takes a minute to fail; a row that cannot run anyway is spared that.
        missing.append(f"weights: {problem}")
    return tuple(missing)


def _data_problem(spec: str, fetch: bool) -> str | None:
    """Why data cannot be used, as far as that shows at once: a path that is not there, a download that fails."""
    from ostinato.streams import SOURCES

    if spec in SOURCES or spec.startswith("hub:"):
        return _download_problem(spec) if fetch else None
    if not Path(spec).expanduser().exists():
        return f"{spec!r} is neither a path that exists nor a known name ({', '.join(SOURCES)}, hub:OWNER/NAME)"
    return None


@cache
def _download_problem(spec: str) -> str | None:
    """Why data cannot be had by name; fetches them where they are not there yet."""
    from ostinato.streams import open_source

    try:
        open_source(spec)
    except OstinatoError as error:
        return str(error)
    return None


@cache
def _weights_problem(name: str) -> str | None:
    """Why a backbone's weights cannot be had by name; fetches them where they are not there yet."""
    if name == DEFAULT_BACKBONE:
        return None
    from ostinato.backbones.weights import load_backbone

    try:
        load_backbone(name)
    except InputError as error:
        return f"{error} Or say which file: backbone.weights.{name}=FILE (huggingface.co/timm/{name} has it)."
    return None


def run_plans(plans: Sequence[Plan], table: Table, given: Given, reporter: Reporter) -> dict[str, str]:
    """Run what is not finished and lacks nothing, one after another; the table is written after each.

    Args:
        plans: the rows chosen.
        table: the table.
        given: options of the command.
        reporter: shows progress.

    Returns:
        For rows that failed, why.

    Raises:
        Interrupted: asked to stop; the same command goes on.
    """
    from ostinato.engine.run import resume, start

    failed: dict[str, str] = {}
    todo = [plan for plan in plans if plan.state != "finished" and not plan.missing]
    for plan in todo:
        reporter.message(f"{plan.row.name}: {plan.command}")
        _remember(given.out, plan)
        try:
            if plan.state == "begun":
                resume(plan.run.root, _where(plan), reporter)
            else:
                start(plan.config, plan.run.root, reporter)
        except Interrupted:
            raise Interrupted(f"Stopped in row {plan.row.name}, which is saved; the same command goes on.") from None
        except OstinatoError as error:
            failed[plan.row.name] = str(error)
            reporter.message(f"{plan.row.name}: {error}")
        write_table(table, measured(table, given.out), given.out)
    if not todo:
        write_table(table, measured(table, given.out), given.out)
    return failed


def _where(plan: Plan) -> dict[str, Any]:
    """Of a row's options those that say where things are now."""
    words = [w for w in plan.words if flat(parse_overrides([w]))[0] in _MOVABLE]
    return parse_overrides(words)


def _remember(out: Path, plan: Plan) -> None:
    """Keep the command of a row beside the runs."""
    path = out / "commands.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, (read_json(path) if path.exists() else {}) | {plan.row.name: plan.command})


@dataclass(frozen=True)
class Measured:
    """A row with its result, where there is one.

    Attributes:
        row: the row.
        summary: of the finished run; fractions.
        command: that made it.
    """

    row: Row
    summary: dict[str, Any] | None
    command: str | None


def measured(table: Table, out: Path) -> list[Measured]:
    """All rows of a table with what ``out`` holds of them.

    Raises:
        DataError: a summary that cannot be read.
    """
    commands = read_json(out / "commands.json") if (out / "commands.json").exists() else {}
    results = []
    for row in table.rows:
        run = RunDir(out / row.name)
        summary = read_json(run.summary) if row.not_run is None and run.summary.exists() else None
        results.append(Measured(row, summary, commands.get(row.name) if summary else None))
    return results


def columns(results: Sequence[Measured]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: published beside measured, "-" where there is nothing.

    Accuracies are in percent. Published metrics have a column only if some row has them.
    """
    published = [metric for metric in METRICS if any(metric in r.row.published for r in results)]
    shown = [m for m in _HEADINGS if m != "mean_task" or m in published]
    labelled = any(r.row.label != r.row.name for r in results)
    headings = ["row", *(["what"] if labelled else [])]
    for metric in shown:
        headings += [f"published {_HEADINGS[metric]}"] if metric in published else []
        headings.append(_HEADINGS[metric])
    headings += [heading for heading, _ in COSTS.values()]
    cells = []
    for result in results:
        summary, row = result.summary or {}, result.row
        line = [row.name, *([row.label] if labelled else [])]
        for metric in shown:
            if metric in published:
                line.append(f"{row.published[metric]:.2f}" if metric in row.published else NOTHING)
            line.append(percent(summary.get(METRICS[metric])))
        cells.append([*line, *(form(summary.get(key)) for key, (_, form) in COSTS.items())])
    return headings, cells


def markdown(table: Table, results: Sequence[Measured]) -> str:
    """The table in Markdown, its notes, and the exact command of every measured row."""
    headings, cells = columns(results)
    texts = 2 if headings[1] == "what" else 1
    rule = ["---"] * texts + ["---:"] * (len(headings) - texts)
    lines = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in (headings, rule, *cells)]
    text = "\n".join(lines) + "\n"
    notes = [table.source and f"Published: {table.source}.", table.protocol, table.note]
    text += "".join(f"\n{note}\n" for note in notes if note)
    lines = [f"- `{r.row.name}`: {note}" for r in results for note in (r.row.note, r.row.not_run) if note]
    text += "\n" + "\n".join(lines) + "\n" if lines else ""
    commands = [f"{r.command}   # {r.row.name}" for r in results if r.command]
    return text + ("\n```sh\n" + "\n".join(commands) + "\n```\n" if commands else "")


def write_table(table: Table, results: Sequence[Measured], out: Path) -> None:
    """Write ``table.md`` (percent) and ``table.csv`` (fractions) beside the runs."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(f"# {table.title}\n\n{markdown(table, results)}", encoding="utf-8")
    keys = [*METRICS.values(), *COSTS, "protocol", "backbone", "stream", "seed"]
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["row", "what", "method", "data", *(f"published_{m}" for m in METRICS), *keys, "command"])
        for result in results:
            row, summary = result.row, result.summary or {}
            quoted = [f"{row.published[m] / 100:.6f}" if m in row.published else "" for m in METRICS]
            values = ["" if summary.get(k) is None else summary[k] for k in keys]
            writer.writerow([row.name, row.label, row.method, row.data, *quoted, *values, result.command])


def collect(table: Table, results: Sequence[Measured], file: Path) -> None:
    """Put the measured table between its markers in a text.

    Args:
        table: the table.
        results: its rows.
        file: has the lines ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``; what is between them is replaced.

    Raises:
        InputError: if the file or a marker is missing, or there are several.
    """
    replace_between(file, table.name, markdown(table, results))


def lacking(plans: Sequence[Plan]) -> str:
    """What rows lack, each thing once with the rows that need it."""
    needs: dict[str, list[str]] = {}
    for plan in plans:
        for thing in plan.missing:
            needs.setdefault(thing, []).append(plan.row.name)
    shown = {thing: rows if len(rows) < 6 else [*rows[:4], f"{len(rows) - 4} more"] for thing, rows in needs.items()}
    return "\n".join(f"{thing}\n  needed by {', '.join(rows)}" for thing, rows in shown.items())


def check_runnable(plans: Sequence[Plan]) -> None:
    """Make sure that there is something to do or to show.

    Raises:
        DataError: if every row lacks something, with what that is.
    """
    if plans and all(plan.missing for plan in plans):
        raise DataError(f"No row can run.\n{lacking(plans)}")


def listing() -> dict[str, Any]:
    """The tables with their titles, and the presets by benchmark."""
    presets: dict[str, list[str]] = {}
    for name in preset_names():
        benchmark, stem = name.split("/")
        presets.setdefault(benchmark, []).append(stem)
    tables = {name: read_table(name) for name in table_names()}
    return {"tables": {n: {"title": t.title, "rows": len(t.rows)} for n, t in tables.items()}, "presets": presets}


def listing_text(found: dict[str, Any]) -> str:
    """:func:`listing` for a terminal."""
    lines = ["Tables (ostinato reproduce TABLE --dry-run shows the rows)"]
    lines += [f"  {name:28s} {t['title']} ({t['rows']} rows)" for name, t in found["tables"].items()]
    lines.append("Presets (ostinato run METHOD -p BENCHMARK, or -p BENCHMARK/METHOD-VARIANT)")
    lines += [f"  {benchmark:16s} {', '.join(stems)}" for benchmark, stems in found["presets"].items()]
    return "\n".join(lines)


def dry_text(rows: Sequence[Row], plans: Sequence[Plan]) -> str:
    """The command of every row, and what is missing to run it."""
    by_name = {plan.row.name: plan for plan in plans}
    lines = []
    for row in rows:
        plan = by_name.get(row.name)
        lines.append(f"{row.name}: {'quoted only, ' + str(row.not_run) if plan is None else plan.state}")
        lines += [f"  {plan.command}"] if plan else []
    missing = lacking(plans)
    return "\n".join([*lines, *([f"Missing\n{missing}"] if missing else [])])


def as_json(
    table: Table, rows: Sequence[Row], plans: Sequence[Plan], results: Sequence[Measured], failed: dict[str, str]
) -> dict[str, Any]:
    """The rows chosen as plain values: published in percent, summaries in fractions."""
    by_name = {plan.row.name: plan for plan in plans}
    out = []
    for result in results:
        row, plan = result.row, by_name.get(result.row.name)
        if row in rows:
            out.append(
                {
                    "row": row.name,
                    "what": row.label,
                    "state": plan.state if plan else "quoted",
                    "published_percent": row.published,
                    "summary": result.summary,
                    "command": result.command or (plan.command if plan else None),
                    "missing": list(plan.missing) if plan else [],
                    "failed": failed.get(row.name),
                }
            )
    return {"table": table.name, "rows": out}


def rich_table(results: Sequence[Measured]) -> Any:
    """Measured with published in brackets, for a terminal; ``table.md`` has the costs as well."""
    from rich.table import Table as Rich
    from rich.text import Text

    shown = [m for m in METRICS if any(m in r.row.published or (r.summary and m != "mean_task") for r in results)]
    table = Rich(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", caption_justify="left")
    table.caption = Text("Measured (published), percent.")
    table.add_column("row", overflow="fold")
    for metric in shown:
        table.add_column(_HEADINGS[metric].removesuffix(" %").replace(" ", "\n"), justify="right", no_wrap=True)
    for result in results:
        cells = []
        for metric in shown:
            quoted = result.row.published.get(metric)
            cell = percent((result.summary or {}).get(METRICS[metric]))
            cells.append(Text(cell if quoted is None else f"{cell} ({quoted:.2f})"))
        table.add_row(Text(result.row.name), *cells)
    return table
