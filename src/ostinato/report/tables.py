"""Tables of runs: percent on screen and in Markdown, fractions in files."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.errors import DataError, InputError
from ostinato.printing import printable
from ostinato.records import read_summary_file

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

    from ostinato.evaluation.confusion import Confusion

NOTHING = "-"
"""Cell of a value that is None, NaN or absent."""

FRACTIONS = (
    "last_accuracy",
    "average_accuracy",
    "mean_task_accuracy",
    "forgetting",
    "bwt",
    "task_id_accuracy",
    "oracle_id_accuracy",
    "task_incremental_accuracy",
    "task_incremental_forgetting",
    "calibration_error",
    "uncalibrated_error",
)
"""Keys of a summary that hold fractions."""

SUMMARY_KEYS = (
    "method",
    "backbone",
    "stream",
    "tasks",
    "classes",
    *FRACTIONS,
    "protocol",
    "trainable_parameters",
    "stored_bytes",
    "train_seconds",
    "eval_seconds",
    "last_eval_seconds",
    "train_images_per_second",
    "eval_images_per_second",
    "peak_memory_bytes",
)
"""Keys of ``summary.json``, in the order of :func:`summary_csv`."""


def percent(value: float | None) -> str:
    """Format a fraction as percent with one digit, without the sign: 0.8125 -> "81.2"."""
    return NOTHING if value is None or math.isnan(value) else f"{100 * value:.1f}"


def human_count(value: float | None) -> str:
    """Format a count of parameters: 37,632 -> "0.04 M", 1,200 -> "1.2 k", 12 -> "12"."""
    if value is None or math.isnan(value):
        return NOTHING
    if value < 1e3:
        return f"{value:.0f}"
    if value < 1e4:
        return f"{value / 1e3:.1f} k"
    millions = value / 1e6
    digits = 2 if millions < 9.995 else 1 if millions < 99.95 else 0
    return f"{millions:.{digits}f} M"


def whole_count(value: float | None) -> str:
    """Format a count with all digits: 12000 -> "12,000"."""
    return NOTHING if value is None or math.isnan(value) else f"{value:,.0f}"


def human_bytes(value: float | None) -> str:
    """Format bytes in decimal units: 999 -> "999 B", 1,500 -> "1.5 kB", 77,000,000 -> "77 MB"."""
    if value is None or math.isnan(value):
        return NOTHING
    if value < 999.5:
        return f"{value:.0f} B"
    for unit in ("kB", "MB", "GB"):
        value /= 1000
        if value < 9.95:
            return f"{value:.1f} {unit}"
        if value < 999.5:
            return f"{value:.0f} {unit}"
    return f"{value / 1000:.1f} TB"


def seconds(value: float | None) -> str:
    """Format seconds without the unit: one digit below 100, none above."""
    if value is None or math.isnan(value):
        return NOTHING
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def run_table(summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table for the terminal, a row per run.

    Args:
        summaries: contents of ``summary.json`` in fractions, as :func:`read_summary` returns them. Keys may be
            absent and values None. ``run`` (a name) is shown if there are several runs.

    Returns:
        A table with accuracies in percent. Optional columns without values are left out. On a narrow terminal, the
        least important columns are left out and named below.
    """
    from rich.table import Table
    from rich.text import Text

    class FittingTable(Table):
        """Table that leaves out and names its least important columns if they do not fit."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            fitting = list(columns)
            for key in _DROP:
                if sum(c.least(summaries) for c in fitting) + len(fitting) - 1 <= options.max_width:
                    break
                fitting = [c for c in fitting if c.key != key]
            if len(fitting) == len(columns):
                yield from super().__rich_console__(console, options)
                return
            yield _fill(Table(**_LOOKS), fitting, summaries)
            missing = ", ".join(c.header.replace("\n", " ") for c in columns if c not in fitting)
            yield Text(f"Left out to fit {options.max_width} characters: {missing}.", style="dim")

    columns = _columns(summaries)
    return _fill(FittingTable(**_LOOKS), columns, summaries)


def markdown_table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Format the columns of :func:`run_table` as a Markdown table, accuracies in percent."""
    columns = _columns(summaries)
    return to_markdown(
        [column.header for column in columns],
        [[column.cell(summary) for column in columns] for summary in summaries],
        texts=[i for i, column in enumerate(columns) if not column.number],
    )


def to_markdown(headings: Sequence[str], rows: Iterable[Sequence[str]], texts: Collection[int] = (0,)) -> str:
    """Format a Markdown table; bars, backslashes and line breaks in cells are escaped.

    Args:
        headings: column headings.
        rows: rows with a cell per column.
        texts: indices of text columns, aligned to the left; numbers are aligned to the right.

    Returns:
        Lines with a final newline.

    Raises:
        ValueError: if a row does not have a cell per column.
    """
    rule = ["---" if i in texts else "---:" for i in range(len(headings))]
    lines = []
    for row in (headings, rule, *rows):
        cells = [_escape(cell) for _, cell in zip(headings, row, strict=True)]
        lines.append("| " + " | ".join(cells) + " |\n")
    return "".join(lines)


def task_line(row: Mapping[str, Any]) -> str:
    """Format the evaluation after a task: ``task 3 of 10 | 30 classes | accuracy 84.2% | forgetting 3.1%``.

    Args:
        row: any of ``task`` (0-based), ``tasks`` (in all), ``classes`` (seen so far), ``accuracy`` (on these),
            ``average_accuracy``, ``forgetting``, ``task_id_accuracy``, ``oracle_id_accuracy``,
            ``task_incremental_accuracy``, ``batch_accuracy`` (fractions), ``train_seconds`` and ``eval_seconds``.
            Absent values and None are left out.
    """
    parts: list[str] = []
    if not _absent(row.get("task")):
        of = "" if _absent(row.get("tasks")) else f" of {row['tasks']}"
        parts.append(f"task {row['task'] + 1}{of}")
    if not _absent(row.get("classes")):
        parts.append(f"{row['classes']} classes")
    for key, name in (
        ("accuracy", "accuracy"),
        ("average_accuracy", "average"),
        ("forgetting", "forgetting"),
        ("task_id_accuracy", "task id"),
        ("oracle_id_accuracy", "oracle id"),
        ("task_incremental_accuracy", "task-incremental"),
        ("batch_accuracy", "in batches of one task"),
    ):
        if not _absent(row.get(key)):
            parts.append(f"{name} {percent(row[key])}%")
    for key, name in (("train_seconds", "train"), ("eval_seconds", "eval")):
        if not _absent(row.get(key)):
            parts.append(f"{name} {seconds(row[key])} s")
    return " | ".join(parts)


def calibration_line(error: float | None, before: float | None) -> str | None:
    """Say how far probabilities are from the accuracy, given two calibration errors as fractions; None without one."""
    if error is None or before is None:
        return None
    return (
        f"Probabilities of answers differ from their accuracy by {percent(error)} points, by {percent(before)} before "
        "calibration."
    )


def class_lines(confusion: Confusion, kind: str) -> list[str]:
    """Lines with recall, precision and support of each class, the lowest recall first; ``kind``: "image" or "text"."""
    lines = [f"  recall  precision  {kind + 's':>7}  class"]
    for one in sorted(confusion.classes(), key=lambda one: math.inf if one.recall is None else one.recall):
        recall, precision = (NOTHING if v is None else f"{percent(v)}%" for v in (one.recall, one.precision))
        lines.append(f"  {recall:>6}  {precision:>9}  {one.samples:>7}  {one.name}")
    return lines


def confused_lines(confusion: Confusion, most: int) -> list[str]:
    """Lines with the confused pairs that have the most samples, at most ``most``; none without a wrong answer."""
    pairs = confusion.pairs()
    if not pairs:
        return []
    more = f" ({most} of {len(pairs)} pairs)" if len(pairs) > most else ""
    lines = [f"  {pair.count} of {pair.of}  {pair.true!r} answered as {pair.predicted!r}" for pair in pairs[:most]]
    return [f"Most confused{more}:", *lines]


def summary_csv(summaries: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write all values of summaries as CSV, a row per run.

    Columns are ``run`` if any run has a name, :data:`SUMMARY_KEYS`, then other keys in alphabetical order. Fractions
    have 6 digits; absent values and None are empty.

    Args:
        summaries: contents of ``summary.json``.
        path: file to write; replaced if it exists.
    """
    given = set().union(*summaries) if summaries else set()
    keys = [*(["run"] if "run" in given else []), *SUMMARY_KEYS]
    keys += sorted(given - set(keys))

    def cell(key: str, value: Any) -> Any:
        if _absent(value):
            return ""
        return f"{value:.6f}" if key.removeprefix("batch_") in FRACTIONS else value

    write_csv(Path(path), keys, ([cell(key, summary.get(key)) for key in keys] for summary in summaries))


def write_csv(path: Path, headings: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table as CSV; names of files keep bytes that are not UTF-8, None is empty."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(headings)
        writer.writerows(rows)


def read_summary(run_dir: str | Path) -> dict[str, Any]:
    """Read the ``summary.json`` of a finished run.

    Returns:
        The contents (fractions, seconds, bytes), with ``run`` set to the directory's name if the file lacks it.

    Raises:
        DataError: if there is no such directory, the run is unfinished, or the file is not a summary.
    """
    folder = Path(run_dir)
    path = folder / "summary.json"
    if not folder.is_dir():
        raise DataError(f"A run must be a directory that `ostinato run` wrote, but there is none at {folder}.")
    if not path.is_file():
        if (folder / "config.toml").is_file():
            raise DataError(
                f"A run must be finished, but {folder} has no summary.json: it was interrupted or is still running. "
                f"Finish it with `ostinato resume {folder}`."
            )
        raise DataError(
            f"A run must have a config.toml and a summary.json, but {folder} has neither. Give the directory that "
            "`ostinato run` wrote."
        )
    return {"run": folder.resolve().name, **read_summary_file(path)}


@dataclass(frozen=True)
class _Column:
    header: str
    key: str
    show: Callable[[Any], str]
    number: bool = True
    optional: bool = False

    def cell(self, summary: Mapping[str, Any]) -> str:
        return self.show(summary.get(self.key))

    def least(self, summaries: Sequence[Mapping[str, Any]]) -> int:
        """Minimum width in characters: numbers are never broken, names fold at 16."""
        header = max(map(len, self.header.split("\n")))
        cells = max((len(self.cell(summary)) for summary in summaries), default=0)
        return max(header, cells if self.number else min(16, cells))


def _plain(value: object) -> str:
    return NOTHING if _absent(value) else printable(" ".join(str(value).split()))


_COLUMNS = (
    _Column("run", "run", _plain, number=False, optional=True),
    _Column("method", "method", _plain, number=False),
    _Column("stream", "stream", _plain, number=False),
    _Column("tasks", "tasks", _plain),
    _Column("classes", "classes", _plain),
    _Column("last\n%", "last_accuracy", percent),
    _Column("avg\n%", "average_accuracy", percent),
    _Column("difference\npoints", "paired", _plain, number=False, optional=True),
    _Column("forget\n%", "forgetting", percent),
    _Column("task\nid %", "task_id_accuracy", percent, optional=True),
    _Column("protocol", "protocol", _plain, number=False),
    _Column("batch\nlast %", "batch_last_accuracy", percent, optional=True),
    _Column("batch\nforget %", "batch_forgetting", percent, optional=True),
    _Column("batch\nprotocol", "batch_protocol", _plain, number=False, optional=True),
    _Column("params", "trainable_parameters", human_count),
    _Column("stored", "stored_bytes", human_bytes),
    _Column("train\ns", "train_seconds", seconds),
    _Column("eval\ns", "eval_seconds", seconds),
)


_DROP = (
    "batch_forgetting",
    "eval_seconds",
    "train_seconds",
    "stored_bytes",
    "trainable_parameters",
    "classes",
    "stream",
    "tasks",
    "task_id_accuracy",
    "batch_protocol",
    "batch_last_accuracy",
    "protocol",
    "forgetting",
    "paired",
)
"""Columns to leave out on a narrow terminal, in this order."""

_LOOKS: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 1, 0, 0), "header_style": "bold"}


def _fill(table: Table, columns: Sequence[_Column], summaries: Sequence[Mapping[str, Any]]) -> Table:
    """Give an empty table its columns and a row per run."""
    from rich.text import Text

    for column in columns:
        table.add_column(
            Text(column.header),
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
            min_width=column.least(summaries),
            vertical="top",
        )
    for summary in summaries:
        table.add_row(*(Text(column.cell(summary)) for column in columns))
    return table


def _columns(summaries: Sequence[Mapping[str, Any]]) -> list[_Column]:
    def wanted(column: _Column) -> bool:
        if not column.optional:
            return True
        known = any(not _absent(summary.get(column.key)) for summary in summaries)
        return known and (column.key != "run" or len(summaries) > 1)

    return [column for column in _COLUMNS if wanted(column)]


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")


def replace_between(file: Path, name: str, body: str) -> None:
    """Replace the text between two markers of a file.

    Args:
        file: text file with the lines ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->``.
        name: name of the table.
        body: new text with a final newline.

    Raises:
        InputError: if the file or a marker is missing, or a marker occurs twice.
    """
    first, last = f"<!-- table:{name} -->", f"<!-- /table:{name} -->"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--collect {file}: cannot be read ({error}).") from None
    if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
        raise InputError(f"--collect {file}: must have one line {first} and after it one line {last}; add them.")
    draft = file.with_name(file.name + ".part")
    pattern = re.escape(first) + ".*?" + re.escape(last)
    draft.write_text(re.sub(pattern, lambda _: f"{first}\n{body}{last}", text, flags=re.DOTALL), encoding="utf-8")
    draft.replace(file)
