"""The demonstration: forgetting and its cure on handwritten digits, without network or GPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ostinato.config import build_config
from ostinato.engine.run import start
from ostinato.errors import InputError
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.report.console import Reporter
from ostinato.report.plots import compare_curves

METHODS = ("finetune", "simplecil", "dualprompt")

EXPLANATION = """
Five tasks of two digits each, learned one after the other, never looking back.
finetune    changes the whole network for each task and forgets the tasks before.
simplecil   changes nothing: a class is the mean of its frozen features.
dualprompt  trains small prompts per task in front of the frozen network.
Look at {out}/compare.png, then try your own images:
  ostinato run dualprompt data=FOLDER_OF_CLASS_FOLDERS/ out=runs/mine"""


def run_demo(out: Path, reporter: Reporter) -> list[dict[str, Any]]:
    """Run the demonstration's methods and draw their curves.

    Args:
        out: directory; an earlier demonstration in it is removed.
        reporter: shows progress.

    Returns:
        A summary per run.

    Raises:
        InputError: if there is something else in the directory.
    """
    mark = out / "demo"
    if out.exists() and any(out.iterdir()) and not mark.exists():
        raise InputError(f"{out} exists and was not made by the demo; choose another with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    mark.touch()
    summaries, matrices = [], {}
    for name in METHODS:
        config = build_config({"method": {"name": name}, "data": {"path": "digits"}, "stream": {"step": 2}})
        summaries.append(start(config, out / name, reporter) | {"run": name})
        matrices[name] = AccuracyMatrix.from_csv(out / name / "accuracy_matrix.csv")
    compare_curves(matrices, out / "compare.png", "Digits, five tasks of two classes")
    return summaries
