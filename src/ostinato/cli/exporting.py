"""Commands that bring a learned model elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.cli.app import Options, RunPath, app, machine_of, take
from ostinato.errors import InputError
from ostinato.printing import say


@app.command()
def export(
    run: RunPath,
    options: Options = None,
    to: Annotated[
        str, typer.Option("--to", help="bundle: a saved learner that holds the backbone's weights.")
    ] = "bundle",
) -> None:
    """Copy a finished run's model to a folder that predicts on any machine.

    Example: ostinato export runs/photos --to bundle out=photos_model
    """
    from ostinato.config import parse_overrides
    from ostinato.learner import artifact_folder, bundle

    given = parse_overrides(options or [])
    out, where = take(given, "out"), machine_of(given)
    if to != "bundle":
        raise InputError(f"--to must be bundle, got {to!r}.")
    if given or set(where) - {"weights"} or not out:
        raise InputError("export needs out=FOLDER. It also takes backbone.weights=FILE, if the weights moved.")
    if not run.is_dir():
        raise InputError(f"{run} is no directory. Give a run directory or an artifact folder.")
    target = Path(str(out))
    bundle(artifact_folder(run), target, where.get("weights"))
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    say(f"Written to {target}: {size / 1e6:.1f} MB. It predicts without any other file: ostinato predict {target} FILE")
