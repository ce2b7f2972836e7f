"""Commands on the model of a finished run: classes, history, rollback."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import Json, RunPath, app, machine_of, refuse_several, say_changed
from ostinato.errors import InputError
from ostinato.printing import say, say_json


@app.command()
def classes(
    run: RunPath,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[rename OLD NEW | remove NAME | merge NAME OTHER]",
            help="A change; without one, list the classes. 'remove' takes data=FOLDER; all take backbone.weights=FILE, "
            "device=cpu and method=FILE.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the classes of a run, or rename, remove or merge some.

    A removed class is never predicted. Merged classes answer by the first name. Methods in closed form can do both.

    Example: ostinato classes runs/photos rename Dasy daisy
    """
    from dataclasses import asdict

    from ostinato.config import parse_overrides
    from ostinato.runs import classes as editing

    words = words or []
    options = [w for w in words[1:] if w.startswith(("data=", "backbone.weights=", "device=", "method="))]
    action, *names = [w for w in words if w not in options] or ["list"]
    given = parse_overrides(options)
    data = given.pop("data", {}).get("path")
    if action == "list" and not names:
        if as_json:
            say_json([asdict(one) for one in editing.list_classes(run)])
            return
        for line in class_lines(run):
            say(line)
        return
    takes = {"rename": 2, "remove": 1, "merge": 2}
    if takes.get(action) != len(names) or (data is not None and action != "remove"):
        raise InputError(
            "classes takes 'rename OLD NEW', 'remove NAME [data=FOLDER]' or 'merge NAME OTHER', got: "
            f"{shlex.join(words)}."
        )
    refuse_several("classes")
    where = machine_of(given) | ({"data": data} if data is not None else {})
    said = getattr(editing, action)(run, *names, **where)
    say_changed(run, said, as_json)


def class_lines(run: Path) -> list[str]:
    """A line per class of a run: the task that learned it, samples, name."""
    from ostinato.runs.classes import list_classes

    return [
        f"task {one.task}  {'?' if one.samples is None else one.samples:>6} samples  {one.name}"
        for one in list_classes(run)
    ]


def history_lines(run: Path) -> list[str]:
    """A line per step of a run's history: time, directory, accuracy, classes."""
    from ostinato.report.tables import percent
    from ostinato.runs.history import history as steps

    lines = []
    for one in steps(run):
        new = f"{len(one.new)} new: {', '.join(one.new)}" if one.new else ""
        known = f"more of {', '.join(one.known)}" if one.known else ""
        accuracy = "not scored on all" if one.accuracy is None else f"{percent(one.accuracy)} %"
        parts = "; ".join(part for part in (new, known) if part)
        lines.append(f"{one.started}  {one.name}  {accuracy}  {parts}")
    return lines


@app.command()
def history(run: RunPath, as_json: Json = False) -> None:
    """List what a run learned when: its classes, and those of every 'learn' since.

    Example: ostinato history runs/photos
    """
    from dataclasses import asdict

    from ostinato.runs.history import history as steps

    if as_json:
        say_json([asdict(one) for one in steps(run)])
        return
    for line in history_lines(run):
        say(line)


@app.command()
def rollback(run: RunPath, as_json: Json = False) -> None:
    """Undo the newest 'learn' of a run: restore the model before it.

    Example: ostinato rollback runs/photos
    """
    from ostinato.runs.history import rollback as undo

    refuse_several("rollback")
    said = undo(run)
    say_changed(run, said, as_json)
