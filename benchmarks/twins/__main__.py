"""Compare a method with its public code: ``python -m benchmarks.twins METHOD --code CHECKOUT``."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import ostinato
from benchmarks.twins.ground import NAME, Sizes
from ostinato.report.tables import to_markdown

OPTIONS = {
    "cl_lora": "",
    "lieprompt": "method.pool_size=5 method.layer_topk=3 method.add_num=3 method.align.epochs=10"
    " method.align.samples={samples}",
    "soft_tf": "method.variant=ff method.keys=learned method.task_id=prompt_id train.lr={rate}",
    "dualprompt": "train.lr={rate}",
    "l2p": "train.lr={rate} method.top_k=2",
    "coda_prompt": "method.head_init=linear",
}
"""Options by method. The public code of LiEPrompt aligns with five batches of samples a class."""


def ours(method: str, sizes: Sizes, seed: int, out: Path) -> list[str]:
    """Command of our run."""
    chosen = OPTIONS[method].format(rate=sizes.scaled_rate, samples=5 * sizes.batch).split()
    return [
        "run", method, f"data={sizes.data}", "data.augment=none", "data.validation=0", f"backbone={NAME}",
        f"backbone.weights={sizes.weights}", f"backbone.size={sizes.size}", f"stream.first={sizes.step}",
        f"stream.step={sizes.step}", "precision=fp32", f"device={sizes.device}", f"train.epochs={sizes.passes}",
        f"train.batch_size={sizes.batch}", f"seed={seed}", *chosen, f"out={out}",
    ]  # fmt: skip


def accuracies(run: Path) -> list[float]:
    """Accuracies after each task of a finished run of ours."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [line["accuracy"] for line in lines if line["event"] == "evaluated"]


def compare(public: list[list[float]], here: list[list[float]]) -> str:
    """Table of means over the seeds with the standard error of the last one, and the difference after the last task.

    Args:
        public: accuracies of the public code after each task, by seed.
        here: ours.
    """
    rows = []
    for name, seeds in ("public code", public), ("here", here):
        means = [f"{100 * statistics.mean(of):.1f}" for of in zip(*seeds, strict=True)]
        rows.append((name, *means, f"{100 * error(seeds):.1f}" if len(seeds) > 1 else "-"))
    head = ["accuracy %", *(f"after task {t + 1}" for t in range(len(here[0]))), "standard error, last"]
    table = to_markdown(head, rows)
    if len(here) < 2:
        return table
    gap = statistics.mean(s[-1] for s in here) - statistics.mean(s[-1] for s in public)
    both = (error(here) ** 2 + error(public) ** 2) ** 0.5
    return f"{table}\nLast task, here minus public code: {100 * gap:+.1f} ± {100 * both:.1f} points."


def error(seeds: list[list[float]]) -> float:
    """Standard error of the mean last accuracy over seeds."""
    return statistics.stdev(s[-1] for s in seeds) / len(seeds) ** 0.5


def revision(code: Path) -> str:
    """Commit of a checkout, or its path if git does not know it."""
    words = ["git", "-C", str(code), "rev-parse", "HEAD"]
    return subprocess.run(words, check=False, capture_output=True, text=True).stdout.strip() or str(code.resolve())


def main(
    method: Annotated[str, typer.Argument(help=f"One of {', '.join(OPTIONS)}.")],
    code: Annotated[Path, typer.Option(help="Checkout of the public code.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option(help="Images: a folder for 'ostinato run data='.", exists=True)] = Path(
        "cifar50"
    ),
    weights: Annotated[Path, typer.Option(help=f"Weights of {NAME}.", exists=True)] = Path("vit_tiny.safetensors"),
    size: Annotated[int, typer.Option(help="Side of the images.", min=32)] = 96,
    step: Annotated[int, typer.Option(help="Classes of a task.", min=2)] = 10,
    passes: Annotated[int, typer.Option(help="Passes over a task.", min=2)] = 3,
    batch: Annotated[int, typer.Option(help="Images of a training batch.", min=1)] = 25,
    seeds: Annotated[list[int] | None, typer.Option("--seed", help="Seed; give several. Default: 0, 1 and 2.")] = None,
    device: Annotated[str, typer.Option(help="Device of both.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Directory; finished runs in it are kept.")] = Path("runs/twins"),
) -> None:
    """Train both programs with each seed, and print their accuracies after each task."""
    if method not in OPTIONS:
        raise typer.BadParameter(f"METHOD must be one of {', '.join(OPTIONS)}, got {method}.")
    if method == "soft_tf" and find_spec("einops") is None:
        raise typer.BadParameter("Soft-TF needs einops: pip install einops.")
    classes = len(ostinato.open_source(str(data)).class_names)
    if classes % step:
        raise typer.BadParameter(f"--step must divide the number of classes, {classes} in {data}, got {step}.")
    sizes = Sizes(str(data.resolve()), str(weights.resolve()), size, step, passes, batch, device)
    plan, file = {"code": revision(code), "ours": ours(method, sizes, 0, Path("RUN"))}, out / "plan.json"
    if file.exists() and json.loads(file.read_text()) != plan:
        raise typer.BadParameter(f"{out} holds runs of another plan, see {file}. Name another directory with --out.")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(plan, indent=1))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    public: list[list[float]] = []
    here: list[list[float]] = []
    for seed in seeds or (0, 1, 2):
        found = out / f"public-{seed}.json"
        if not found.exists():
            words = [method, str(code), json.dumps(asdict(sizes)), str(seed), str(found)]
            subprocess.run([sys.executable, "-m", "benchmarks.twins.public", *words], check=True, env=environment)
        public.append(json.loads(found.read_text()))
        run = out / f"ours-{seed}"
        if not (run / "summary.json").exists():
            shutil.rmtree(run, ignore_errors=True)
            words = ours(method, sizes, seed, run)
            subprocess.run([sys.executable, "-m", "ostinato", *words], check=True, env=environment)
        here.append(accuracies(run))
    print(compare(public, here))


if __name__ == "__main__":
    typer.run(main)
