"""Plans of a table's rows, and their execution as runs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ostinato.config import RunConfig, absolute, build_config, changeable, flat, parse_overrides
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.errors import InputError, Interrupted, OstinatoError, did_you_mean, explained
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
"""Data sets that need no path."""

_MOVABLE = set(changeable("resume")) - {"method.name"}
"""Options that a resumed row takes from the command; its method is compared."""

_ELSEWHERE = _MOVABLE | {"checkpoint.every"}
"""Options that may differ between two runs of the same experiment."""


@dataclass(frozen=True)
class Given:
    """Options of the command by kind.

    Attributes:
        out: directory of the table.
        data: paths by data set; "" for a bare ``data=``.
        weights: files by backbone; "" for a bare ``backbone.weights=``.
        words: options for every row.
        methods: files of methods that the command allows to run.
        against: row that the others are compared with; None for the row of the usual reference.
    """

    out: Path
    data: dict[str, str]
    weights: dict[str, str]
    words: tuple[str, ...]
    methods: frozenset[Path] = frozenset()
    against: str | None = None

    def check_may_run(self, row: Row) -> None:
        """Make sure that the command names the file of a row's method.

        Raises:
            InputError: if the method is in a file that the command does not name.
        """
        file, _ = split_file(str(row.method))
        if file is not None and file not in self.methods:
            raise InputError(
                f"Row {row.name}: the table names the file {row.method}. A file is run only if you name it: add "
                f"method={row.method}"
            )


def sort_options(table: Table, words: Sequence[str], against: str | None = None) -> Given:
    """Separate data, weights and the directory from options for every row.

    Args:
        table: the table.
        words: options of the command line.
        against: row that the others are compared with.

    Raises:
        InputError: if a word is no option, or names a method, or the table does not run the row ``against``.
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
                    f"{word}: method must be a FILE that a row names; each row has its own method. Choose rows by "
                    "their names."
                )
            methods.add(file)
        else:
            rest.append(word)
    parse_overrides(rest)
    return Given(out, data, weights, tuple(rest), frozenset(methods), against)


@dataclass(frozen=True)
class Plan:
    """A row with the configuration of its run.

    Attributes:
        row: row of the table.
        config: configuration; its data path is the default if the row's data were not given.
        words: options after the preset, with data and weights.
        run: directory of the run.
        missing: missing data and weights, each with how to get it; empty if the row can run.
    """

    row: Row
    config: RunConfig
    words: tuple[str, ...]
    run: RunDir
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        """Command of the run."""
        row = self.row
        preset = []
        if row.preset:
            benchmark, stem = row.preset.name.split("/")
            preset = ["-p", benchmark if stem == row.method else row.preset.name]
        return shlex.join(["ostinato", "run", str(row.method), *preset, *self.words, f"out={self.run.root}"])

    @property
    def state(self) -> Literal["finished", "begun", "new"]:
        """State of the run."""
        if self.run.summary.exists():
            return "finished"
        return "begun" if self.run.config.exists() else "new"

    def _has_learned(self) -> bool:
        return self.state == "finished" or Checkpoints(self.run.checkpoints, self.run.read_record().run_id).any()

    def check_same(self) -> None:
        """Make sure that the run's directory holds this experiment, if anything.

        Raises:
            InputError: if the run there has other options or, when finished, other data or weights.
        """
        if self.state == "new":
            return
        recorded, now = self.run.read_config(), absolute(self.config)
        old, new = ({k: v for k, v in _leaves(c.to_dict()) if k not in _ELSEWHERE} for c in (recorded, now))
        absent = "not given"
        changed = [f"{k} was {old.get(k, absent)} and is {new.get(k, absent)} now" for k in sorted(old | new)
                   if old.get(k) != new.get(k)]  # fmt: skip
        keys = flat(parse_overrides(list(self.words)))
        if self.state == "finished" and "data.path" in keys and recorded.data.path != now.data.path:
            changed.append(f"data was {recorded.data.path} and is {now.data.path} now")
        weights = now.backbone.weights
        if self.state == "finished" and weights and Path(weights).exists():
            origin = self.run.read_record().backbone
            if origin and origin.sha256 != _sha256(now.backbone.name, weights):
                changed.append(f"the backbone's weights were other ones than {weights}")
        file, _ = split_file(now.method.name)
        if file is not None and self._has_learned() and self.run.read_record().method_texts != [sha256_of(file)]:
            changed.append(f"{file} changed since the run (earlier text: {self.run.method})")
        if changed:
            raise InputError(
                f"{self.run.root} holds this row with other options: {'; '.join(changed)}. Give the same options, "
                "another out=, or remove that directory."
            )


@cache
def _sha256(name: str, weights: str) -> str:
    """SHA-256 of weights as runs record it: of a file, or of the files in a folder."""
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
    """Plan rows and check all of them before the first one runs.

    Args:
        table: published table.
        rows: chosen rows; rows that are only quoted are skipped.
        given: options of the command.
        fetch: download named data and weights of unfinished rows; otherwise they are assumed to be available.

    Returns:
        A plan per row.

    Raises:
        InputError: if an option is wrong, or a directory holds another experiment.
    """
    from ostinato.runs.build import protocol_of
    from ostinato.training.recipes import check_recipe

    rows = [row for row in rows if row.not_run is None]
    needed = list(dict.fromkeys(row.data for row in rows if row.data))
    known = {row.data for row in table.rows}
    if wrong := [name for name in given.data if name and name not in known]:
        raise InputError(f"data.{wrong[0]}: {table.name} has no row on it. Its data: {sorted(filter(None, known))}.")
    plans = []
    for row in rows:
        words = replace_words(row.words, given.words)
        # A bare data= is for the data set of the first chosen row.
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
            raise InputError(f"Row {row.name}: give its method as the key 'method' of the row, not as an option.")
        given.check_may_run(row)
        method = get_method(str(row.method))
        check_options(method, config.method.options())
        protocol_of(config, method)
        check_recipe(config.train.overrides())
        plans.append(Plan(row, config, words, RunDir(given.out / row.name), ()))
    backbones = list(dict.fromkeys(plan.config.backbone.name for plan in plans))
    if "" in given.weights and len(backbones) > 1:
        raise InputError(
            f"backbone.weights must name a backbone, since the rows use {len(backbones)} backbones: "
            + " ".join(f"backbone.weights.{name}=FILE" for name in backbones)
        )
    if unknown := [name for name in given.weights if name and name not in backbones]:
        raise InputError(f"backbone.weights.{unknown[0]}: {did_you_mean(unknown[0], backbones)}")
    for plan in plans:
        plan.check_same()
    return [Plan(p.row, p.config, p.words, p.run, _missing(p, fetch)) for p in plans]


def _missing(plan: Plan, fetch: bool) -> tuple[str, ...]:
    """List missing data and weights of an unfinished row, each with how to get it."""
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
        # Skipped if the row cannot run anyway: without network, a download takes a minute to fail.
        missing.append(f"weights: {problem}")
    return tuple(missing)


def _data_problem(spec: str, fetch: bool) -> str | None:
    """Explain a missing path or a failed download; None if there is no problem."""
    from ostinato.streams import SOURCES

    if spec in SOURCES or spec.startswith("hub:"):
        return _download_problem(spec) if fetch else None
    if not user_path(spec, "data").exists():
        return f"{spec!r} is neither a path that exists nor a known name ({', '.join(SOURCES)}, hub:OWNER/NAME)"
    return None


@cache
def _download_problem(spec: str) -> str | None:
    """Fetch data by name; explain a failure."""
    from ostinato.streams import open_source

    try:
        open_source(spec)
    except OstinatoError as error:
        return str(error)
    return None


@cache
def _weights_problem(name: str) -> str | None:
    """Fetch the weights of a backbone by name; explain a failure."""
    if name == DEFAULT_BACKBONE:
        return None
    from ostinato.backbones.weights import load_backbone, of_transformers

    try:
        load_backbone(name)
    except InputError as error:
        if of_transformers(name, None):
            return f"{error} Or give its folder: backbone.weights.{name}=FOLDER (huggingface.co/{name} has it)."
        return f"{error} Or give its file: backbone.weights.{name}=FILE (huggingface.co/timm/{name} has it)."
    return None


def run_plans(plans: Sequence[Plan], table: Table, given: Given, reporter: Reporter) -> dict[str, str]:
    """Run rows one after another; write the table after each.

    Returns:
        Error messages of failed rows.

    Raises:
        Interrupted: if a signal stopped a run; the same command resumes it.
    """
    from ostinato.runs.lifecycle import resume, start

    failed: dict[str, str] = {}
    for plan in plans:
        reporter.message(f"{plan.row.name}: {plan.command}")
        remember(given.out, plan)
        try:
            if plan.state == "begun":
                resume(plan.run.root, _where(plan), reporter)
            else:
                start(plan.config, plan.run.root, reporter)
        except Interrupted:
            raise Interrupted(f"Stopped in row {plan.row.name}, which is saved. Repeat the command.") from None
        except Exception as error:
            known = explained(error)
            if known is None:
                raise
            failed[plan.row.name] = str(known)
            reporter.message(f"{plan.row.name}: {known}")
        write_table(table, measured(table, given.out, given.against), given.out)
    return failed


def _where(plan: Plan) -> dict[str, Any]:
    """Select the options of a row that a resumed run takes: paths and the machine."""
    return parse_overrides(resume_words(plan))


def resume_words(plan: Plan) -> list[str]:
    """The options of :func:`_where` as words of the command line."""
    words = [w for w in plan.words if flat(parse_overrides([w]))[0] in _MOVABLE]
    file, _ = split_file(str(plan.row.method))
    return [*words, f"method={plan.row.method}"] if file is not None else words


def remember(out: Path, plan: Plan) -> None:
    """Write the command of a row to ``commands.json``."""
    path = out / "commands.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, (read_json(path) if path.exists() else {}) | {plan.row.name: plan.command})


def lacking(plans: Sequence[Plan]) -> str:
    """List missing data and weights, each once with the rows that need it."""
    needs: dict[str, list[str]] = {}
    for plan in plans:
        for thing in plan.missing:
            needs.setdefault(thing, []).append(plan.row.name)
    shown = {thing: rows if len(rows) < 6 else [*rows[:4], f"{len(rows) - 4} more"] for thing, rows in needs.items()}
    return "\n".join(f"{thing}\n  needed by {', '.join(rows)}" for thing, rows in shown.items())
