"""Result commands: report, reproduce, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import Json, app, machine_of, plain_console, refuse_several, reporting, sort_words
from ostinato.errors import DataError, InputError
from ostinato.printing import say, say_json


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the accuracy curves into this .png, .pdf or .svg file.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="Reference that the others are compared with, one per seed; else ranpac."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare finished runs in one table, sample by sample with a reference.

    Runs that were scored on other samples or by another protocol, or learned from other amounts of data, stand apart.

    Example: ostinato report runs/photos runs/mine --against runs/photos
    """
    from ostinato.report.comparing import Comparison
    from ostinato.report.tables import markdown_table, run_table, summary_csv

    comparison = Comparison(runs, against or [])
    shown, summaries = [one.run.path for one in comparison.all], comparison.summaries()
    if csv:
        summary_csv(summaries, csv)
    if plot:
        from ostinato.analysis.comparison import draw_runs

        draw_runs(shown, summaries, plot)
    if as_json:
        say_json(summaries)
    elif markdown:
        for group in comparison.groups():
            if group.heading:
                say(f"{group.heading}\n")
            say(markdown_table(group.summaries))
        if notes := comparison.notes():
            say("\n".join(f"- {note}" for note in notes))
    else:
        from ostinato.analysis.comparison import remarks

        for group in comparison.groups():
            if group.heading:
                say(f"\n{group.heading}")
            plain_console(False).print(run_table(group.summaries))
        for line in (*comparison.notes(), *remarks(shown, summaries)):
            say(line)


@app.command()
def reproduce(
    table: Annotated[
        str | None, typer.Argument(help="Name of a table, or its TOML file; by default, list the tables.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROW]... [KEY=VALUE]...", help="Rows (default: all), and options for every row."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command of every row and run nothing.")] = False,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the measured table between its markers in FILE.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Row that the others are compared with, sample by sample; else ranpac."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Rows to run at a time, each in a process.")] = 1,
    as_json: Json = False,
) -> None:
    """Run a published table row by row, and print published beside measured results.

    Repeat the command after a stop; finished rows are not run again.

    Example: ostinato reproduce soft_tf/table4 data=cifar100 out=runs/table4
    """
    from ostinato import reproduce as tables

    refuse_several("reproduce")
    if table is None:
        listing = tables.listing()
        if as_json:
            say_json(listing)
        else:
            say(tables.listing_text(listing))
        return
    read = tables.read_table(table)
    given = tables.sort_options(read, [w for w in words or [] if "=" in w], against)
    rows = read.choose([w for w in words or [] if "=" not in w])
    if collect:
        tables.collect_rows(read, rows, given, collect)
        return
    if dry_run:
        results = tables.measured(read, given.out, given.against)
        outcome = tables.Outcome(tables.plan_rows(read, rows, given), results, {})
    else:
        with reporting(as_json) as (_, reporter):
            outcome = tables.run_rows(read, rows, given, reporter, jobs)
    if as_json:
        say_json(tables.as_json(read, rows, outcome))
    elif dry_run:
        say(tables.dry_text(rows, outcome.plans))
    else:
        plain_console(False).print(tables.rich_table([r for r in outcome.results if r.row in rows]))
        say(f"Written to {given.out}: table.md, table.csv, and a run directory per row")
    if outcome.failed:
        raise DataError("\n".join(f"{name}: {why}" for name, why in outcome.failed.items()))


@app.command()
def analyse(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run; for layer_sweep and radar, a directory of runs.")],
    kind: Annotated[str | None, typer.Argument(help="Name of an analysis; by default, list them.")] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[IMAGE]... [KEY=VALUE]...",
            help="Image files or folders for attention; data=, out=, task=, head=, device=, backbone.weights=, "
            "method=.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw an analysis of a run, such as its attention or masks, and write the numbers as CSV.

    Example: ostinato analyse runs/photos attention new/*.jpg
    """
    from ostinato.config import parse_overrides
    from ostinato.predicting import image_files

    keys = ("data", "data.path", "out", "device", "backbone.weights", "method", "task", "head")
    words = words or []
    if kind is not None and kind.partition("=")[0] in keys and "=" in kind:  # only options: list the analyses
        kind, words = None, [kind, *words]
    options, names = sort_words(words, keys, context)
    given = parse_overrides(options)
    images = list(image_files([Path(name) for name in names]))
    for key, first in (("task", 1), ("head", 0)):
        if key in given and type(given[key]) is not int:
            raise InputError(f"{key} must be a whole number, counted from {first}, got {given[key]}.")
    from ostinato import analysis

    machine = machine_of(given)
    if kind is None:
        found = analysis.kinds(run, **machine)
        if as_json:
            say_json({"kinds": found})
        else:
            say("\n".join(f"{k:17s} {v}" for k, v in found.items()))
        return
    data = given.pop("data", {}).get("path")
    done = analysis.analyse(run, kind, images, data=data, **machine, **given)
    if as_json:
        say_json({"png": str(done.png), "csv": str(done.csv), "notes": done.notes})
        return
    say("\n".join([*done.notes, f"Written to {done.png} and {done.csv}"]))
