"""Demonstration of forgetting on handwritten digits, without network or GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ostinato.config import build_config
from ostinato.errors import InputError, OstinatoError
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.files import read_json, write_json
from ostinato.report.console import Reporter
from ostinato.report.plots import compare_curves
from ostinato.runs.lifecycle import start
from ostinato.runs.rundir import RunDir

METHODS = ("finetune", "ranpac", "duet")

EXPLANATION = """
Five tasks of two digits each, learned one after the other, never looking back.
finetune  trains the whole network on each task and forgets the tasks before.
ranpac    trains nothing: ridge regression on random features of the frozen network.
duet      adapts a second reading of the network to the first task, and puts a closed form on both.
Look at {out}/compare.png, then try your own images:
  ostinato run data=FOLDER_OF_CLASS_FOLDERS/ out=runs/mine"""


MARK = "demo.json"
"""File that marks a directory of the demonstration."""

_MADE_BY = {"made_by": "ostinato demo"}
_PICTURE = "compare.png"


def run_demo(out: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Run the methods of the demonstration and draw their curves.

    Args:
        out: directory; runs and the figure of an earlier demonstration are replaced.
        reporter: shows progress.

    Returns:
        A summary per run.

    Raises:
        InputError: if the directory holds anything else.
    """
    _make_room(out)
    summaries, matrices = [], {}
    for name in METHODS:
        config = build_config(_options(name))
        summaries.append(start(config, out / name, reporter) | {"run": name})
        matrices[name] = AccuracyMatrix.from_csv(out / name / "accuracy_matrix.csv")
    compare_curves(matrices, out / _PICTURE, "Digits, five tasks of two classes")
    return summaries


def _options(name: str) -> dict[str, Any]:
    # Enough random features for 600 digits; the default takes longer.
    options = {"n_random": 2000} if name == "duet" else {}
    return {
        "method": {"name": name} | options,
        "data": {"path": "digits", "limit_per_class": 60},
        "stream": {"step": 2},
    }


def _make_room(out: Path) -> None:
    """Remove the runs of an earlier demonstration and mark the directory.

    Raises:
        InputError: if the directory or a run in it was not made by the demonstration.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not _is_marked(out / MARK):
        raise InputError(f"{out} exists and was not made by the demo. Choose another directory with --out.")
    runs = [out / name for name in METHODS if (out / name).exists() or (out / name).is_symlink()]
    if others := [run for run in runs if not _is_ours(run)]:
        raise InputError(f"{others[0]} is no run of the demo. Move it away, or choose another directory with --out.")
    for run in runs:
        shutil.rmtree(run)
    (out / _PICTURE).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / MARK, _MADE_BY)


def _is_marked(mark: Path) -> bool:
    try:
        return not mark.is_symlink() and read_json(mark) == _MADE_BY
    except OstinatoError:
        return False


def _is_ours(run: Path) -> bool:
    """Tell whether a directory holds a run with the options of the demonstration, or nothing."""
    if run.is_symlink() or not run.is_dir():
        return False
    try:
        if not RunDir(run).config.exists():
            RunDir(run).check_free()  # only files of a killed creation
            return True
        return RunDir(run).read_config() == build_config(_options(run.name))
    except OstinatoError:
        return False
