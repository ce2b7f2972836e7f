"""Unknown inputs and calibration errors on flowers: ``python -m benchmarks.unknown``.

Six of twelve species are learned in two tasks. Inputs of other kinds are the other species, handwritten digits, noise,
rendered lines of text, and images of one pixel.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image, ImageDraw

import ostinato
from benchmarks.machine import machine, markdown
from ostinato import Learner
from ostinato.learner.certainty import plain_features
from ostinato.learner.predicting import batch_of
from ostinato.report.tables import percent, replace_between

PAGE = Path(__file__).resolve().parents[1] / "docs/howto/unknown.md"
NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
KNOWN, STEP = 6, 3
"""Number of species learned, and of a task."""

RATE = 0.05
WORDS = (
    "invoice",
    "total",
    "amount",
    "error",
    "warning",
    "file",
    "edit",
    "view",
    "help",
    "open",
    "street",
    "city",
    "date",
)
ACCURACY = ("method", "accuracy", "known rejected", "calibration error", "before")
HEAD = ("method", "input", "AUROC distance", "FPR95 distance", "not rejected", "AUROC probability", "FPR95 probability")


def digits(rng: np.random.Generator, n: int) -> list[Image.Image]:
    """Handwritten digits."""
    split = ostinato.open_source("digits").train
    return [split.load(int(i)) for i in rng.choice(len(split), n, replace=False)]


def noise(rng: np.random.Generator, n: int) -> list[Image.Image]:
    """Independent pixels."""
    return [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(n)]


def texts(rng: np.random.Generator, n: int) -> list[Image.Image]:
    """Lines of words, dark on light or light on dark."""
    images = []
    for _ in range(n):
        colours = [(20, 20, 30), (240, 240, 240)]
        ground, ink = colours if rng.random() < 0.5 else colours[::-1]
        image = Image.new("RGB", (320, 240), ground)
        for line in range(14):
            words = " ".join(rng.choice(WORDS, rng.integers(2, 9)))
            ImageDraw.Draw(image).text((8, 6 + 16 * line), words, fill=ink)
        images.append(image)
    return images


def pixels(rng: np.random.Generator, n: int) -> list[Image.Image]:
    """Images of one pixel."""
    return [Image.new("RGB", (1, 1), tuple(rng.integers(0, 256, 3).tolist())) for _ in range(n)]


def auroc(known: np.ndarray, other: np.ndarray) -> float:
    """Probability that a value of ``other`` is larger than one of ``known``; ties count half."""
    return float((other[:, None] > known).mean() + (other[:, None] == known).mean() / 2)


def accepted(known: np.ndarray, other: np.ndarray) -> float:
    """Share of ``other`` that is accepted by the threshold that accepts 95 % of ``known``: FPR at 95 % TPR."""
    return float((other <= np.quantile(known, 0.95)).mean())


@torch.inference_mode()
def distances(learner: Learner, images: list[Image.Image]) -> np.ndarray:
    """Squared distance of each image to the nearest class."""
    certainty, transform = learner.certainty, learner.eval_transform
    if certainty is None:
        raise RuntimeError("the learner has no statistics")
    plain = plain_features(learner, certainty)
    found = [certainty.typicality.distance(plain(batch_of(transform, [transform(image)]))) for image in images]
    return torch.cat(found).cpu().numpy()


def measure(learner: Learner, known: list[Image.Image], others: dict[str, list[Image.Image]]) -> tuple[Any, float]:
    """Rows of a method, and the share of known images that are rejected."""

    def of(images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray, float]:
        found = learner.predict(images, reject_rate=RATE)
        unsure = np.array([1 - (one.probabilities or [0.0])[0] for one in found])
        return distances(learner, images), unsure, float(np.mean([one.unknown for one in found]))

    far, unsure, rejected = of(known)
    rows = []
    for name, images in others.items():
        other_far, other_unsure, caught = of(images)
        shares = (
            auroc(far, other_far),
            accepted(far, other_far),
            1 - caught,
            auroc(unsure, other_unsure),
            accepted(unsure, other_unsure),
        )
        rows.append((f"`{learner.method.name}`", f"{len(images)} {name}", *map(percent, shares)))
    return rows, rejected


def main(
    data: Annotated[Path, typer.Option(help="Folder of the twelve species.")],
    weights: Annotated[Path, typer.Option(help="Weights of ViT-Ti/16.")],
    methods: Annotated[str, typer.Option(help="Methods, with commas.")] = "simplecil,ranpac",
    images: Annotated[int, typer.Option(help="Images of each other kind.")] = 60,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for its own choice.")] = 0,
    cache: Annotated[Path | None, typer.Option(help="Folder of plain features, kept from run to run.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/howto/unknown.md.")] = False,
) -> None:
    """Learn six species, and tell them from inputs of other kinds."""
    if threads:
        torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    source = ostinato.open_source(str(data))
    names, test = source.class_names, source.test
    if test is None:
        raise typer.BadParameter(f"{data} must have train/ and test/.")
    known, flowers = (
        [test.load(int(i)) for i in np.flatnonzero((test.labels < KNOWN) == old)] for old in (True, False)
    )
    others = {
        "flowers not learned": flowers,
        "digits": digits(rng, images),
        "noise": noise(rng, images),
        "texts": texts(rng, images),
        "one pixel": pixels(rng, images),
    }
    stream = ostinato.stream(source, tasks=[names[i : i + STEP] for i in range(0, KNOWN, STEP)])
    rows, summary, held_out = [], [], 0
    for method in methods.split(","):
        learner = Learner(method, backbone=NAME, weights=str(weights), cache=cache)
        for task in stream:
            learner.learn(task)
        result = learner.evaluate(stream)
        found, rejected = measure(learner, known, others)
        shares = (result.accuracy, rejected, result.calibration_error, result.uncalibrated_error)
        summary.append((f"`{method}`", *map(percent, shares)))
        rows += found
        held_out = learner.certainty.typicality.samples if learner.certainty is not None else 0
        typer.echo("\n".join("  ".join(row) for row in (summary[-1], *found)))
    text = (
        f"{machine(torch.device('cpu'))}; torch {torch.__version__.split('+')[0]}; {datetime.date.today()}. {NAME}, "
        f"seed 0, {KNOWN} species in tasks of {STEP}, {held_out} held-out and {len(known)} test images, in percent.\n\n"
        f"{markdown(ACCURACY, summary)}\n\n{markdown(HEAD, rows)}\n"
    )
    typer.echo(text)
    if write:
        command = (
            f"python -m benchmarks.unknown --data flowers12 --weights vit_tiny.safetensors --methods {methods} --write"
        )
        replace_between(PAGE, "unknown", f"{text}\n```text\n{command}\n```\n")


if __name__ == "__main__":
    typer.run(main)
