"""Commands that bring a learned model elsewhere: export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ostinato.cli.app import Options, RunPath, app, machine_of, take
from ostinato.errors import InputError, did_you_mean
from ostinato.printing import say


@app.command()
def export(
    run: RunPath,
    options: Options = None,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="bundle: a saved learner that holds the backbone's weights. onnx, pt2 (torch.export) or torchscript: "
            "one file from pixels to scores.",
        ),
    ] = "bundle",
) -> None:
    """Copy a finished run's model to a folder or file that predicts on any machine.

    Example: ostinato export runs/photos --to bundle out=photos_model

    Example: ostinato export runs/photos --to onnx out=photos.onnx
    """
    from ostinato.config import parse_overrides
    from ostinato.interop import FORMATS

    given = parse_overrides(options or [])
    out, where = take(given, "out"), machine_of(given)
    if to not in (known := ["bundle", *FORMATS]):
        raise InputError(f"--to must name a format, got {to!r}. {did_you_mean(to, known)}")
    taken = {"weights"} if to == "bundle" else {"weights", "method"}
    if given or set(where) - taken or not out:
        more = "" if to == "bundle" else ", and method=FILE for a method that is not registered"
        raise InputError(
            f"export --to {to} needs out=PATH. It also takes backbone.weights=FILE, if the weights moved{more}."
        )
    if not run.is_dir():
        raise InputError(f"{run} is no directory. Give a run directory or an artifact folder.")
    target = Path(str(out))
    if to == "bundle":
        _bundle(run, target, where.get("weights"))
    else:
        _file(run, target, to, where)


def _bundle(run: Path, target: Path, weights: str | None) -> None:
    from ostinato.learner import artifact_folder, bundle

    bundle(artifact_folder(run), target, weights)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    say(f"Written to {target}: {size / 1e6:.1f} MB. It predicts without any other file: ostinato predict {target} FILE")


def _file(run: Path, target: Path, to: str, where: dict[str, Any]) -> None:
    from ostinato.interop import FORMATS, TOLERANCE, check_target, export
    from ostinato.runs.scoring import load_run

    check_target(target, to)  # before the weights are read
    learner = load_run(run, device="cpu", precision="fp32", **where)
    made = export(learner, target, to)
    say(
        f"Written to {target}: {made.bytes / 1e6:.1f} MB, {len(learner.class_names)} classes. Scores of 5 images, "
        f"alone and as a batch, differ from those of PyTorch in fp32 by at most {made.difference:.1e} of the best; "
        f"{TOLERANCE:.0e} is allowed."
    )
    trust = " --trust" if FORMATS[to].runs_code else ""
    say(f"It holds the class names and the pre-processing: ostinato predict{trust} {target} FILE")
