"""Training commands: run, resume, learn, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostinato.cli.app import (
    MACHINE,
    GoesOn,
    Json,
    Options,
    RunPath,
    app,
    machine_of,
    refuse_several,
    running,
    say_changed,
    sort_words,
    take,
)
from ostinato.defaults import DEFAULT_METHOD
from ostinato.printing import say, say_json

if TYPE_CHECKING:
    from rich.console import Console

    from ostinato.distributed import ProcessGroup


@app.command()
def run(
    method: Annotated[
        str | None,
        typer.Argument(help=f"Name of a method, see 'ostinato list', or its file: my.py. Default: {DEFAULT_METHOD}."),
    ] = None,
    options: Options = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="TOML file of options.")] = None,
    preset: Annotated[
        str | None, typer.Option("-p", "--preset", help="Published options: BENCHMARK or BENCHMARK/VARIANT.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Learn a stream of tasks and write the results to a run directory.

    Options override the file; the file overrides the preset. 'ostinato reproduce' lists the presets.

    Example: ostinato run data=photos/ stream.step=5 out=runs/photos
    """
    from ostinato.config import parse_overrides, read_toml
    from ostinato.runs.options import directory_for, new_run

    words = options or []
    if method is not None and "=" in method and not Path(method).is_file():  # the first option
        method, words = None, [method, *words]
    given = parse_overrides(words)
    file = read_toml(config) if config else {}
    out = take(given, "out") or take(file, "out")
    checked = new_run(method, given, file, preset)
    out = str(out or directory_for(checked))
    with running(as_json, checked.device) as (console, reporter, processes):
        from ostinato.presets import read_preset
        from ostinato.runs.lifecycle import start
        from ostinato.runs.photos import with_photo_backbone

        if method is None:
            console.print(f"Method: {checked.method.name}. 'ostinato list' shows the others.")
        if preset is not None:
            console.print(read_preset(preset, checked.method.name).status, markup=False, highlight=False)
        checked = with_photo_backbone(checked, reporter.message, processes)
        result = start(checked, out, reporter, processes)
        show_result(result, console, as_json, processes)


@app.command(cls=GoesOn)
def resume(run: RunPath, options: Options = None, as_json: Json = False) -> None:
    """Resume a run that was stopped or killed; the result is the same as without the stop.

    Options give new paths, such as data=PATH, or method=FILE for a method in a file.
    """
    from ostinato.config import parse_overrides
    from ostinato.runs.lifecycle import resume as resume_run

    given = parse_overrides(options or [])
    with running(as_json, str(given.get("device", "auto"))) as (console, reporter, processes):
        result = resume_run(run, given, reporter, processes)
        show_result(result, console, as_json, processes)
        check_accepted(result, run, processes)


@app.command(cls=GoesOn)
def learn(
    run: RunPath,
    options: Options = None,
    accept: Annotated[
        bool,
        typer.Option(
            "--accept",
            help="Put the new model in place whatever the checks say; without data=, the one that was kept aside.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Teach a finished run a folder of new classes, of more samples of known ones, or of both.

    The earlier model stays in place if a new class has learned nothing, or if the accuracy on old classes falls by more
    than learn.max_drop; eval=FOLDER has samples of these.

    Example: ostinato learn runs/photos data=more_photos/ eval=old_test_photos/
    """
    from ostinato.config import parse_overrides, put

    given = parse_overrides(options or [])
    if accept and not given:
        from ostinato.runs.history import accept as put_in_place

        refuse_several("learn --accept")
        say_changed(run, put_in_place(run), as_json)
        return
    if accept:
        put(given, "learn.accept", True, "--accept")
    with running(as_json, str(given.get("device", "auto"))) as (console, reporter, processes):
        from ostinato.runs.lifecycle import learn_more

        result = learn_more(run, given, reporter, processes)
        show_result(result, console, as_json, processes)
        check_accepted(result, run, processes)


@app.command()
def merge(
    context: typer.Context,
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="Run directories or saved learners. Also backbone.weights=FILE, device=cpu and method=FILE.",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the merged learner; a new one in runs/ without.")] = None,
) -> None:
    """Join what several runs have learned, without their data, to the same as if one had learned everything.

    Methods that keep sums over samples can be merged. Classes of one name become one class. The result is a saved
    learner, which 'predict' and 'eval' take.

    Example: ostinato merge runs/mine runs/theirs --out runs/ours
    """
    from ostinato.config import parse_overrides
    from ostinato.learner.merging import merge as join
    from ostinato.runs.options import free_directory
    from ostinato.runs.scoring import load_run

    words, folders = sort_words(runs, MACHINE, context)
    where = machine_of(parse_overrides(words))
    merged = join(*(load_run(run, **where) for run in folders), tell=say)
    folder = out or Path(free_directory(f"merged-{merged.method.name}"))
    merged.save(folder)
    say(f"{len(merged.class_names)} classes. Written to {folder}.")


def check_accepted(result: dict[str, Any], run: Path, processes: ProcessGroup) -> None:
    """Raise NotAcceptedError in the main process if the model of a continuation was kept aside."""
    from ostinato.runs.placing import not_accepted

    if processes.is_main and not result.get("accepted", True):
        raise not_accepted(result, run)


def show_result(result: dict[str, Any], console: Console, as_json: bool, processes: ProcessGroup) -> None:
    """Print the result of a run in the main process."""
    from ostinato.report.tables import calibration_line, percent, run_table

    if not processes.is_main:
        return
    if as_json:
        say_json(result)
        return
    console.print(run_table([result]))
    if "batch_protocol" in result:
        console.print(
            f"Columns of batches are by {result['batch_protocol']}: a batch reveals that its samples share a task, so "
            "they do not compare with the others."
        )
    if "new_accuracy" in result:
        if result["old_accuracy_before"] is None:
            console.print(
                "Earlier classes were not scored, so that a fall of their accuracy stays unnoticed: give a labelled "
                "folder of them as eval=FOLDER."
            )
        else:
            console.print(
                f"Earlier classes: {percent(result['old_accuracy_before'])} % before, "
                f"{percent(result['old_accuracy_after'])} % after."
            )
        if result.get("known_accuracy_before") is not None:
            console.print(
                f"Known classes, on test samples of the new data: {percent(result['known_accuracy_before'])} % before, "
                f"{percent(result['known_accuracy_after'])} % after."
            )
        if result["new_accuracy"] is not None:
            console.print(f"New classes: {percent(result['new_accuracy'])} %.")
    if line := calibration_line(result.get("calibration_error"), result.get("uncalibrated_error")):
        console.print(line)
    for line in (*result.get("remarks", []), *(f"Warning: {text}" for text in result.get("warnings", []))):
        console.print(line)
    console.print(f"Written to {result['run']}: summary.json, accuracy_matrix.csv, plots/, artifact/", highlight=False)
