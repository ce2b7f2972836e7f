"""Measured rows of a table, and their differences to the reference row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.errors import InputError, did_you_mean
from ostinato.evaluation.pairing import Difference, paired_difference
from ostinato.files import read_json
from ostinato.report.comparing import REFERENCE, Compared, Scored, compare
from ostinato.reproduce.table import Row, Table
from ostinato.runs.rundir import RunDir


@dataclass(frozen=True)
class Measured:
    """A row with its result.

    Attributes:
        row: row of the table.
        summary: summary of the finished run, in fractions; None if the row was not run.
        command: command of the run.
        compared: comparison with the reference row of the same data and variant; None if that was not run.
        machine: device and threads of the run; None if they are unknown.
    """

    row: Row
    summary: dict[str, Any] | None
    command: str | None
    compared: Compared | None = None
    machine: str | None = None

    def comparison(self) -> dict[str, Any]:
        """The comparison as plain values: differences in fractions, and reasons in one text."""
        one = self.compared
        of = one.difference if one else None
        return {
            "difference": of.mean if of else None,
            "difference_error": of.error if of else None,
            "not_comparable": "; ".join(one.reasons) or None if one else None,
        }


def check_reference(table: Table, against: str | None) -> None:
    """Make sure that a table runs the reference row.

    Raises:
        InputError: if it has no such row, or only quotes it.
    """
    known = list(dict.fromkeys(row.base for row in table.rows if row.not_run is None))
    if against is not None and against not in known:
        hint = did_you_mean(against, known)
        raise InputError(f"--against must name a row that {table.name} runs, got {against}. {hint}")


def measured(table: Table, out: Path, against: str | None = None) -> list[Measured]:
    """Read the results of all rows of a table from ``out``.

    Args:
        table: the table.
        out: directory of its runs.
        against: name of the reference row; by default the row named :data:`REFERENCE`, or the only row by that method.

    Raises:
        DataError: if a file cannot be read.
    """
    commands = read_json(out / "commands.json") if (out / "commands.json").exists() else {}
    scored: dict[str, Scored] = {}
    for row in table.rows:
        run = RunDir(out / row.name)
        if row.not_run is None and run.summary.exists():
            scored[row.name] = Scored(run.root)
    reference = against or _usual_reference(table)
    references = {
        (row.data, row.variant): scored[row.name] for row in table.rows if row.base == reference and row.name in scored
    }
    results = []
    for row in table.rows:
        run, base = scored.get(row.name), references.get((row.data, row.variant))
        if run is None:
            results.append(Measured(row, None, None))
            continue
        compared = compare(run, base) if base is not None else None
        of = run.record
        machine = f"{of.device}, {of.threads} thread{'s' * (of.threads != 1)}" if of is not None else None
        results.append(Measured(row, run.summary, commands.get(row.name), compared, machine))
    return results


def _usual_reference(table: Table) -> str | None:
    """Name of the default reference row; None if the table has none."""
    rows = list(dict.fromkeys(row.base for row in table.rows if row.method == REFERENCE))
    return REFERENCE if REFERENCE in rows else rows[0] if len(rows) == 1 else None


def difference(group: Sequence[Measured]) -> Difference | None:
    """Difference to the reference over the compared variants of a row; None if no variant was compared."""
    pairs = [r.compared.pair for r in group if r.compared is not None and r.compared.pair is not None]
    return paired_difference(pairs)
