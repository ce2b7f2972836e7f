"""Figures of a year with a model of flowers, which ``examples/year.py`` plays: ``python -m benchmarks.year``."""

from __future__ import annotations

import datetime
import importlib
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks.machine import machine, markdown
from benchmarks.unknown import auroc, distances
from ostinato import Learner
from ostinato.evaluation.calibration import bin_sums, calibration_error
from ostinato.learner.inputs import read_image
from ostinato.report.tables import percent, replace_between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/year.md"
NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
HEAD = ("month", "classes", "accuracy", "calibration error", "AUROC", "unknown", "seconds", "MB")


def example() -> Any:
    """The module of the example."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        return importlib.import_module("year")
    finally:
        sys.path.pop(0)


def certainty(model: Learner, test: list[Path]) -> tuple[float, float | None]:
    """Calibration error on photos of known species, and AUROC of those of others by their distance."""
    known, other = ([p for p in test if (p.parent.name in model.class_names) == there] for there in (True, False))
    found = model.predict(known)
    sure = torch.tensor([(one.probabilities or [0.0])[0] for one in found])
    right = torch.tensor([one.classes[0] == photo.parent.name for one, photo in zip(found, known, strict=True)])
    error = calibration_error(bin_sums(sure, right))
    if not other:
        return error, None
    near, far = (distances(model, [read_image(p, 0, NAME)[1] for p in part]) for part in (known, other))
    return error, auroc(np.asarray(near), np.asarray(far))


def rows(module: Any, year: Any, method: str, options: list[str]) -> Iterator[tuple[str, ...]]:
    """A row per month."""
    for month in module.play(year, method, options):
        error, area = certainty(year.model(), year.test)
        shares = (month.accuracy, error, area, month.unknown)
        shown = ["-" if share is None else percent(share) for share in shares]
        yield (
            f"{month.name}: {month.what}", str(month.classes), *shown, f"{month.seconds:.0f}", f"{month.megabytes:.1f}"
        )  # fmt: skip
        typer.echo("  ".join(shown))


def main(
    data: Annotated[Path, typer.Option(help="Folder of the twelve species.")],
    weights: Annotated[Path, typer.Option(help="Weights of ViT-Ti/16.")],
    methods: Annotated[str, typer.Option(help="Methods, with commas.")] = "duet,ranpac",
    photos: Annotated[int, typer.Option(help="Photos of a species; 0 for all.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for its own choice.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/year.md.")] = False,
) -> None:
    """Play the year with each method."""
    if threads:
        torch.set_num_threads(threads)
    module, parts = example(), []
    for method in methods.split(","):
        with tempfile.TemporaryDirectory() as folder:
            year = module.Year(data, Path(folder), photos or None)
            options = [f"backbone={NAME}", f"backbone.weights={weights.resolve()}", "seed=0"]
            table = markdown(HEAD, list(rows(module, year, method, options)))
            use = module.december(year)
            shown = "Chromium was not installed." if use.shown is None else (
                f"The page shows `{', '.join(use.shown.splitlines())}` for a photo of {use.photo.parent.name}."
            )  # fmt: skip
            december = (
                f"December: an ONNX file of {use.megabytes:.1f} MB; {percent(use.same)} % of its answers are those of "
                f"the run. {shown}"
            )
            parts.append(f"`{method}`:\n\n{table}\n\n{textwrap.fill(december, 120)}\n")
    version = torch.__version__.split("+")[0]
    about = (
        f"{machine(torch.device('cpu'))}; torch {version}; {datetime.date.today()}. {NAME}, seed 0, in percent where "
        "no unit is named."
    )
    text = "\n".join([f"{textwrap.fill(about, 120)}\n", *parts])
    typer.echo(text)
    if write:
        command = f"python -m benchmarks.year --data flowers12 --weights vit_tiny.safetensors --methods {methods}"
        replace_between(PAGE, "year", f"{text}\n```text\n{command} --threads {torch.get_num_threads()} --write\n```\n")


if __name__ == "__main__":
    typer.run(main)
