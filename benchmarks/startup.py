"""Start-up time of commands: ``python -m benchmarks.startup``."""

from __future__ import annotations

import datetime
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from safetensors.torch import save_file

from benchmarks.machine import PAGE, machine, markdown
from benchmarks.prediction import NAME, photos
from ostinato.report.tables import replace_between

HERE = Path(__file__).resolve().parents[1] / "src"
HEAD = ("command", "seconds of CPU time", "of `import torch`")


def cpu_seconds(words: list[str], source: Path, cwd: Path) -> float:
    """Measure user and system seconds of a Python process.

    Args:
        words: arguments of Python.
        source: folder of the imported package.
        cwd: working directory.

    Raises:
        RuntimeError: if the process fails.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(
    rounds: Annotated[int, typer.Option(help="Turns; the median counts.")] = 5,
    before: Annotated[Path | None, typer.Option(help="Folder src of an older revision to compare.")] = None,
    model: Annotated[str, typer.Option(help="timm's name of the encoder; its weights are random.")] = NAME,
    write: Annotated[bool, typer.Option("--write", help="Put the table into docs/performance.md.")] = False,
) -> None:
    """Measure commands and ``import torch`` in turns."""
    sources = {"now": HERE} | ({"before": before.resolve()} if before else {})
    commands: dict[str, tuple[list[str], Path]] = {"`import torch`": (["-c", "import torch"], HERE)}
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), folder / "vit.safetensors")
        for group in ("a", "b"):
            (folder / "photos" / group).mkdir(parents=True)
            photos(folder / "photos" / group, 4, seed=ord(group))
        for when, source in sources.items():
            run = ["run", "simplecil", "data=photos", "stream.step=1", f"out={when}", f"backbone.name={model}"]
            cpu_seconds(["-m", "ostinato", *run, "backbone.weights=vit.safetensors"], source, folder)
            some = (["--help"], ["list"], ["show", "l2p"], ["predict", when, "photos/a/0.jpg"])
            for words in some:
                shown = "predict RUN IMAGE" if words[0] == "predict" else " ".join(words)
                commands[f"`{shown}`, {when}" if before else f"`{shown}`"] = (["-m", "ostinato", *words], source)
        for _ in range(rounds):
            for what, (words, source) in commands.items():
                times.setdefault(what, []).append(cpu_seconds(words, source, folder))
    usual = {what: statistics.median(each) for what, each in times.items()}
    rows = [(what, f"{each:.2f}", f"{each / usual['`import torch`']:.2f}") for what, each in usual.items()]
    head = (
        f"{machine(torch.device('cpu'))}, one of them used; torch {torch.__version__}; {datetime.date.today()}. "
        f"{model}, random weights, one image, median of {rounds} turns."
    )
    text = f"{head}\n\n{markdown(HEAD, rows)}\n"
    typer.echo(text)
    if write:
        older = " --before OLDER/src" if before else ""
        command = f"python -m benchmarks.startup --rounds {rounds}{older} --write"
        replace_between(PAGE, "startup", f"{text}\n```sh\n{command}\n```\n")


if __name__ == "__main__":
    typer.run(main)
