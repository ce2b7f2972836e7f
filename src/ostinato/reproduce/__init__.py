"""Published tables, run row by row; every row is an ordinary run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.errors import DataError, InputError
from ostinato.presets import preset_names, table_names
from ostinato.report.console import Reporter
from ostinato.report.tables import replace_between
from ostinato.reproduce.jobs import run_jobs
from ostinato.reproduce.plan import Given, Plan, lacking, plan_rows, remember, run_plans, sort_options
from ostinato.reproduce.results import Measured, measured
from ostinato.reproduce.show import markdown, rich_table, write_table
from ostinato.reproduce.table import Row, Table, read_table

__all__ = [
    "Outcome",
    "as_json",
    "collect_rows",
    "dry_text",
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
    """List the tables with titles and sizes, and the presets by benchmark."""
    presets: dict[str, list[str]] = {}
    for name in preset_names():
        benchmark, stem = name.split("/")
        presets.setdefault(benchmark, []).append(stem)
    tables = {name: read_table(name) for name in table_names()}
    return {"tables": {n: {"title": t.title, "rows": len(t.rows)} for n, t in tables.items()}, "presets": presets}


def listing_text(found: dict[str, Any]) -> str:
    """Format :func:`listing` for a terminal."""
    lines = ["Tables (ostinato reproduce TABLE --dry-run shows the rows)"]
    lines += [f"  {name:28s} {t['title']} ({t['rows']} rows)" for name, t in found["tables"].items()]
    lines.append("Presets (ostinato run METHOD -p BENCHMARK, or -p BENCHMARK/METHOD-VARIANT)")
    lines += [f"  {benchmark:16s} {', '.join(stems)}" for benchmark, stems in found["presets"].items()]
    return "\n".join(lines)


@dataclass(frozen=True)
class Outcome:
    """Result of running rows.

    Attributes:
        plans: plans of the rows that can be run.
        results: results of all rows of the table, measured now or before.
        failed: error messages by row.
    """

    plans: list[Plan]
    results: list[Measured]
    failed: dict[str, str]


def run_rows(table: Table, rows: Sequence[Row], given: Given, reporter: Reporter, jobs: int = 1) -> Outcome:
    """Run or resume rows of a table, ``jobs`` of them at a time.

    Raises:
        InputError: if an option is wrong.
        DataError: if no row can be run.
    """
    plans = plan_rows(table, rows, given, fetch=True)
    missing = lacking(plans)
    if plans and all(plan.missing for plan in plans):
        raise DataError(f"No row can run.\n{missing}")
    if missing:
        reporter.message(f"Not run because data or weights are missing:\n{missing}")

    def write() -> None:
        write_table(table, measured(table, given.out, given.against), given.out)

    todo = [plan for plan in plans if plan.state != "finished" and not plan.missing]
    if not todo:
        write()
    if jobs == 1:
        failed = run_plans(todo, table, given, reporter)
    else:
        for plan in todo:
            remember(given.out, plan)
        failed = run_jobs(todo, jobs, given.out / "logs", reporter.message, write)
    return Outcome(plans, measured(table, given.out, given.against), failed)


def collect_rows(table: Table, rows: Sequence[Row], given: Given, path: Path) -> None:
    """Write measured rows between the markers of their table in a file.

    Raises:
        InputError: if no row was measured.
    """
    found = [r for r in measured(table, given.out, given.against) if r.row in rows]
    if not any(r.summary for r in found):
        raise InputError(f"--collect: none of these rows was measured below {given.out}. Give out=DIRECTORY.")
    replace_between(path, table.name, markdown(table, found))


def dry_text(rows: Sequence[Row], plans: Sequence[Plan]) -> str:
    """Format the command of every row, and the missing data and weights."""
    by_name = {plan.row.name: plan for plan in plans}
    lines = []
    for row in rows:
        plan = by_name.get(row.name)
        lines.append(f"{row.name}: {'quoted only, ' + str(row.not_run) if plan is None else plan.state}")
        lines += [f"  {plan.command}"] if plan else []
    missing = lacking(plans)
    return "\n".join([*lines, *([f"Missing\n{missing}"] if missing else [])])


def as_json(table: Table, rows: Sequence[Row], outcome: Outcome) -> dict[str, Any]:
    """Rows as plain values: published results in percent, summaries in fractions."""
    by_name = {plan.row.name: plan for plan in outcome.plans}

    def values(result: Measured) -> dict[str, Any]:
        row, plan = result.row, by_name.get(result.row.name)
        return {
            "row": row.name,
            "what": row.label,
            "state": plan.state if plan else "quoted",
            "published_percent": row.published,
            "summary": result.summary,
            **result.comparison(),
            "command": result.command or (plan.command if plan else None),
            "missing": list(plan.missing) if plan else [],
            "failed": outcome.failed.get(row.name),
        }

    return {"table": table.name, "rows": [values(result) for result in outcome.results if result.row in rows]}
