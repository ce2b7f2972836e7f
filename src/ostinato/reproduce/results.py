"""What was measured of a table's rows, and how each differs from the reference row."""

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
    """A row with its result, where there is one.

    Attributes:
        row: the row.
        summary: of the finished run; fractions.
        command: that made it.
        compared: with the reference row on the same data in the same variant, which is measured as well.
    """

    row: Row
    summary: dict[str, Any] | None
    command: str | None
    compared: Compared | None = None

    def comparison(self) -> dict[str, Any]:
        """What a comparison found as plain values: fractions, and reasons as one text."""
        one = self.compared
        of = one.difference if one else None
        return {
            "difference": of.mean if of else None,
            "difference_error": of.error if of else None,
            "not_comparable": "; ".join(one.reasons) or None if one else None,
        }


def check_reference(table: Table, against: str | None) -> None:
    """Make sure that a table has the row that others are to be compared with.

    Raises:
        InputError: if it has not, or only quotes it.
    """
    known = list(dict.fromkeys(row.base for row in table.rows if row.not_run is None))
    if against is not None and against not in known:
        raise InputError(f"--against {against}: {table.name} runs no such row. {did_you_mean(against, known)}")


def measured(table: Table, out: Path, against: str | None = None) -> list[Measured]:
    """All rows of a table with what ``out`` holds of them.

    Args:
        table: the table.
        out: directory of its runs.
        against: name of the row that others are compared with; None takes the row called as the usual reference, or
            the only one by that method.

    Raises:
        DataError: a file that cannot be read.
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
        results.append(Measured(row, run.summary, commands.get(row.name), compared))
    return results


def _usual_reference(table: Table) -> str | None:
    """The row that others are compared with where none is named."""
    rows = list(dict.fromkeys(row.base for row in table.rows if row.method == REFERENCE))
    return REFERENCE if REFERENCE in rows else rows[0] if len(rows) == 1 else None


def difference(group: Sequence[Measured]) -> Difference | None:
    """The difference to the reference over the variants of a row that were compared; None without any."""
    pairs = [r.compared.pair for r in group if r.compared is not None and r.compared.pair is not None]
    return paired_difference(pairs)
