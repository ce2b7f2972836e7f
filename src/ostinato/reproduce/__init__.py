"""Published tables, run row by row: every row is an ordinary run whose command is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.errors import InputError
from ostinato.presets import preset_names, table_names
from ostinato.report.console import Reporter
from ostinato.reproduce.plan import (
    Given,
    Plan,
    check_runnable,
    lacking,
    plan_rows,
    run_plans,
    sort_options,
)
from ostinato.reproduce.results import Measured, measured
from ostinato.reproduce.show import collect, rich_table
from ostinato.reproduce.table import Row, Table, read_table

__all__ = [
    "Given",
    "Measured",
    "Outcome",
    "Plan",
    "Row",
    "Table",
    "as_json",
    "check_runnable",
    "collect",
    "collect_rows",
    "dry_text",
    "lacking",
    "listing",
    "listing_text",
    "measured",
    "plan_rows",
    "read_table",
    "rich_table",
    "run_plans",
    "run_rows",
    "sort_options",
]


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


@dataclass(frozen=True)
class Outcome:
    """Rows that were run.

    Attributes:
        plans: a plan per row that can be run.
        results: of all rows of the table, measured now or before.
        failed: reasons by row.
    """

    plans: list[Plan]
    results: list[Measured]
    failed: dict[str, str]


def run_rows(table: Table, rows: Sequence[Row], given: Given, reporter: Reporter) -> Outcome:
    """Run rows of a table one after another, or go on with them.

    Args:
        table: published results.
        rows: of it.
        given: options of :func:`sort_options`.
        reporter: shows progress.

    Raises:
        InputError: if none of the rows can be run.
    """
    plans = plan_rows(table, rows, given, fetch=True)
    check_runnable(plans)
    if missing := lacking(plans):
        reporter.message(f"Not run for want of data or weights:\n{missing}")
    failed = run_plans(plans, table, given, reporter)
    return Outcome(plans, measured(table, given.out, given.against), failed)


def collect_rows(table: Table, rows: Sequence[Row], given: Given, path: Path) -> None:
    """Put measured rows between the markers of their table in a file.

    Raises:
        InputError: if none of them was measured.
    """
    found = [r for r in measured(table, given.out, given.against) if r.row in rows]
    if not any(r.summary for r in found):
        raise InputError(f"--collect: none of these rows was measured below {given.out}. Say where as out=.")
    collect(table, found, path)


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
                    **result.comparison(),
                    "command": result.command or (plan.command if plan else None),
                    "missing": list(plan.missing) if plan else [],
                    "failed": failed.get(row.name),
                }
            )
    return {"table": table.name, "rows": out}
