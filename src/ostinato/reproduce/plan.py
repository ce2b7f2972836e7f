"""From a table and the options of the command to runs, one after another."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ostinato.config import RunConfig, absolute, build_config, changeable, flat, parse_overrides
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.errors import DataError, InputError, Interrupted, OstinatoError, did_you_mean, explained
from ostinato.files import read_json, sha256_of, write_json
from ostinato.lookup import get_method, split_file
from ostinato.paths import user_path
from ostinato.presets import DATA
from ostinato.registry import check_options
from ostinato.report.console import Reporter
from ostinato.reproduce.results import check_reference, measured
from ostinato.reproduce.show import write_table
from ostinato.reproduce.table import Row, Table, replace_words
from ostinato.runs.checkpoint import Checkpoints
from ostinato.runs.rundir import RunDir

_BUNDLED = ("digits", "glyphs")
"""Data that need no path."""

_MOVABLE = set(changeable("resume")) - {"method.name"}
"""Options that a resumed row takes from the command; its method is compared instead."""

_ELSEWHERE = _MOVABLE | {"checkpoint.every"}
"""What may differ between two calls of the same experiment."""


@dataclass(frozen=True)
class Given:
    """The options of the command, sorted.

    Attributes:
        out: directory of the table.
        data: by name of the data set; "" for a bare ``data=``.
        weights: files by backbone; "" for a bare ``backbone.weights=``.
        words: options for every row.
        methods: files of methods that may be run; a table alone cannot have one run.
        against: the row that others are compared with; None for the one by the usual reference.
    """

    out: Path
    data: dict[str, str]
    weights: dict[str, str]
    words: tuple[str, ...]
    methods: frozenset[Path] = frozenset()
    against: str | None = None

    def check_may_run(self, row: Row) -> None:
        """Make sure that the command names the file of a row's method, if it is one.

        Raises:
            InputError: if it does not.
        """
        file, _ = split_file(str(row.method))
        if file is not None and file not in self.methods:
            raise InputError(
                f"Row {row.name}: the table names the file {row.method}. A file is run only if you name it: add "
                f"method={row.method}"
            )


def sort_options(table: Table, words: Sequence[str], against: str | None = None) -> Given:
    """Tell data, weights and the directory from options for every row.

    Args:
        table: the table.
        words: of the command line.
        against: the row that others are compared with.

    Raises:
        InputError: for what cannot be said of a whole table, or if it has no such row.
    """
    check_reference(table, against)
    names = {row.data for row in table.rows if row.data} | set(DATA)
    out, data, weights, rest = Path("runs") / table.name.replace("/", "-"), {}, {}, []
    methods: set[Path] = set()
    for word in words:
        key, _, value = word.partition("=")
        if key == "out":
            out = Path(value)
        elif key in ("data", "data.path") or key.removeprefix("data.") in names:
            data["" if key in ("data", "data.path") else key.removeprefix("data.")] = value
        elif key.startswith("backbone.weights"):
            weights[key.removeprefix("backbone.weights").removeprefix(".")] = value
        elif key in ("method", "method.name"):
            file, _ = split_file(value)
            if file is None:
                raise InputError(
                    f"{word}: the table's rows say which method they run; only files that they name are allowed here, "
                    "method=FILE. Choose rows by their names."
                )
            methods.add(file)
        else:
            rest.append(word)
    parse_overrides(rest)
    return Given(out, data, weights, tuple(rest), frozenset(methods), against)


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

    def _has_learned(self) -> bool:
        return self.state == "finished" or Checkpoints(self.run.checkpoints, self.run.read_record().run_id).any()

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
        if self.state == "finished" and weights and Path(weights).exists():
            origin = self.run.read_record().backbone
            if origin and origin.sha256 != _sha256(now.backbone.name, weights):
                changed.append(f"the backbone's weights were other ones than {weights}")
        file, _ = split_file(now.method.name)
        if file is not None and self._has_learned() and self.run.read_record().method_texts != [sha256_of(file)]:
            changed.append(f"{file} changed since it was run (as it was: {self.run.method})")
        if changed:
            raise InputError(
                f"{self.run.root} holds this row with other options: {'; '.join(changed)}. Give the same options, "
                "another out=, or remove that directory."
            )


@cache
def _sha256(name: str, weights: str) -> str:
    """The hash that a run records of weights: of a file its own, of a folder that of what is in it."""
    from ostinato.backbones.weights import load_backbone

    if Path(weights).is_file():
        return sha256_of(Path(weights))
    origin = load_backbone(name, weights=weights).origin
    return origin.sha256 if origin is not None else ""


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
    from ostinato.training.recipes import check_recipe

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
        if data is None and row.data in _BUNDLED:
            data = row.data
        if data is not None:
            words = replace_words(words, [f"data={data}"])
        layers = (row.preset.options if row.preset else {}, {"method": {"name": row.method}})
        config = build_config(layers[0], parse_overrides(list(words)), layers[1])
        name = config.backbone.name
        file = given.weights.get(name) or given.weights.get("")
        if file is not None:
            words = replace_words(words, [f"backbone.weights={file}"])
            config = build_config(layers[0], parse_overrides(list(words)), layers[1])
        if "name" in parse_overrides(list(words)).get("method", {}):
            raise InputError(f"Row {row.name}: its method is the key 'method' of the row, not an option of it.")
        given.check_may_run(row)
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
        if not user_path(backbone.weights, "backbone.weights").exists():
            missing.append(f"weights: there is nothing at {backbone.weights}")
    elif fetch and not missing and (problem := _weights_problem(backbone.name)):
        # Without network a download takes a minute to fail; a row that cannot run anyway is spared that.
        missing.append(f"weights: {problem}")
    return tuple(missing)


def _data_problem(spec: str, fetch: bool) -> str | None:
    """Why data cannot be used, as far as that shows at once: a path that is not there, a download that fails."""
    from ostinato.streams import SOURCES

    if spec in SOURCES or spec.startswith("hub:"):
        return _download_problem(spec) if fetch else None
    if not user_path(spec, "data").exists():
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
    from ostinato.backbones.weights import load_backbone, of_transformers

    try:
        load_backbone(name)
    except InputError as error:
        if of_transformers(name, None):
            return f"{error} Or say which folder: backbone.weights.{name}=FOLDER (huggingface.co/{name} has it)."
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
    from ostinato.runs.lifecycle import resume, start

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
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            failed[plan.row.name] = str(known)
            reporter.message(f"{plan.row.name}: {known}")
        write_table(table, measured(table, given.out, given.against), given.out)
    if not todo:
        write_table(table, measured(table, given.out, given.against), given.out)
    return failed


def _where(plan: Plan) -> dict[str, Any]:
    """Of a row's options those that say where things are now."""
    words = [w for w in plan.words if flat(parse_overrides([w]))[0] in _MOVABLE]
    own, _ = split_file(str(plan.row.method))
    return parse_overrides(words) | ({"method": {"name": plan.row.method}} if own is not None else {})


def _remember(out: Path, plan: Plan) -> None:
    """Keep the command of a row beside the runs."""
    path = out / "commands.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, (read_json(path) if path.exists() else {}) | {plan.row.name: plan.command})


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
