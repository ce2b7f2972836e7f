"""Commands that show results: report, reproduce, analyse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import Json, app, machine_of, plain_console, refuse_several, reporting
from ostinato.errors import DataError, InputError
from ostinato.printing import say, say_json


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    csv: Annotated[Path | None, typer.Option(help="Also write the table as CSV.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw all accuracy curves into this .png, .pdf or .svg file.")
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
        str | None, typer.Argument(help="A table, or a TOML file of one; without, they are listed.")
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ROW]... [KEY=VALUE]...", help="Rows (all without), and options for every row."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command of every row and run nothing.")] = False,
    collect: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Put what was measured between the table's markers in FILE.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Row that the others are compared with, sample by sample; else ranpac."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a published table row by row, and print what was published beside what was measured.

    The same command goes on after a stop; finished rows are not run again.

    Example: ostinato reproduce soft_tf/table4 data=cifar100 out=runs/table4
    """
    from ostinato import reproduce as work

    refuse_several("reproduce")
    if table is None:
        listing = work.listing()
        if as_json:
            say_json(listing)
        else:
            say(work.listing_text(listing))
        return
    read = work.read_table(table)
    given = work.sort_options(read, [w for w in words or [] if "=" in w], against)
    rows = read.choose([w for w in words or [] if "=" not in w])
    if collect:
        work.collect_rows(read, rows, given, collect)
        return
    if dry_run:
        outcome = work.Outcome(work.plan_rows(read, rows, given), work.measured(read, given.out, given.against), {})
    else:
        with reporting(as_json) as (_, reporter):
            outcome = work.run_rows(read, rows, given, reporter)
    if as_json:
        say_json(work.as_json(read, rows, outcome.plans, outcome.results, outcome.failed))
    elif dry_run:
        say(work.dry_text(rows, outcome.plans))
    else:
        plain_console(False).print(work.rich_table([r for r in outcome.results if r.row in rows]))
        say(f"Written to {given.out}: table.md, table.csv, and a run directory per row")
    if outcome.failed:
        raise DataError("\n".join(f"{name}: {why}" for name, why in outcome.failed.items()))


@app.command()
def analyse(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or for layer_sweep a directory of runs.")],
    kind: Annotated[str | None, typer.Argument(help="What to show; without, what there is.")] = None,
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
    """Draw what a run has learned, as papers show it, and write the numbers beside it.

    Example: ostinato analyse runs/photos attention new/*.jpg
    """
    from ostinato.config import parse_overrides
    from ostinato.predicting import image_files

    keys = ("data=", "data.path=", "out=", "device=", "backbone.weights=", "method=", "task=", "head=")
    if kind is not None and kind.startswith(keys):  # options alone: list the kinds
        kind, words = None, [kind, *(words or [])]
    options = [w for w in words or [] if w.startswith(keys)]
    given = parse_overrides(options)
    images = list(image_files([Path(w) for w in words or [] if w not in options]))
    for key in ("task", "head"):
        if key in given and type(given[key]) is not int:
            raise InputError(f"{key}={given[key]}: must be a whole number, counted from 0.")
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
