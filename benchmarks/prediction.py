"""Prediction of many files beside a plain loop over timm's model: ``python -m benchmarks.prediction``."""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import timm
import timm.data
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.machine import PAGE, machine, markdown
from ostinato import Learner
from ostinato.report.tables import replace_between
from ostinato.streams import StreamOptions, TaskStream, arrays

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
METHODS = ("simplecil", "dualprompt")
HEAD = ("what predicts", "encoder passes", "images/s", "of the loop")


class Files(Dataset[Tensor]):
    """Data set of image files for a loop over timm's model, with timm's transform for evaluation."""

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        """One image."""
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


def photos(folder: Path, n: int, seed: int = 0) -> list[Path]:
    """Write smooth random images of the size of web photos: 500 x 375 pixels, JPEG."""
    rng = np.random.default_rng(seed)
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for path in paths:
        small = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def timm_loop(name: str, files: list[Path], batch: int, workers: int) -> Callable[[], int]:
    """Make a call that predicts all files with timm's model, its pre-processing and a head of ten classes."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=10).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    loader = DataLoader(Files(files, transform), batch_size=batch, num_workers=workers)

    @torch.inference_mode()
    def call() -> int:
        return sum(len(model(x).argmax(1)) for x in loader)

    return call


def taught(method: str, weights: Path, name: str, batch: int, precision: str) -> Learner:
    """Make a learner of ten classes with two random images each."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(10), 2)
    x = rng.integers(0, 256, (len(y), 32, 32, 3), dtype=np.uint8)
    source = arrays(x, y, x[::2], y[::2])
    stream = TaskStream(source, StreamOptions(first=5, step=5, validation=0))
    learner = Learner(
        method, backbone=name, weights=str(weights), precision=precision, eval_batch_size=batch, train={"epochs": 1}
    )
    for task in stream:
        learner.learn(task)
    return learner


def main(
    images: Annotated[int, typer.Option(help="Files to predict.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images per batch.")] = 64,
    rounds: Annotated[int, typer.Option(help="Turns; the median counts.")] = 3,
    precision: Annotated[str, typer.Option(help="Precision of our frozen weights; timm's loop is in fp32.")] = "fp32",
    model: Annotated[str, typer.Option(help="timm's name of the encoder; its weights are random.")] = NAME,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 for its own choice.")] = 0,
    write: Annotated[bool, typer.Option("--write", help="Put the table into docs/performance.md.")] = False,
) -> None:
    """Measure a plain loop over timm's model, and our prediction in batches and one by one, in turns."""
    if threads:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        files = photos(Path(folder), images)
        weights = Path(folder) / "vit.safetensors"
        save_file(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), weights)
        calls: dict[tuple[str, str], Callable[[], int]] = {
            (f"timm, DataLoader, batch {batch}", "1"): timm_loop(model, files, batch, 0),
            (f"timm, DataLoader with 2 workers, batch {batch}", "1"): timm_loop(model, files, batch, 2),
        }
        for method in METHODS:
            for size in (batch, 1):
                learner = taught(method, weights, model, size, precision)
                passes = "1" if method == "simplecil" else "2"
                calls[f"`{method}`, batch {size}", passes] = _ours(learner, files)
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for _ in range(rounds):
            for key, call in calls.items():
                start = time.perf_counter()
                if call() != images:
                    raise RuntimeError(f"{key[0]} did not predict all images")
                times[key].append(images / (time.perf_counter() - start))
    rates = {key: statistics.median(each) for key, each in times.items()}
    loop = max(rate for (what, _), rate in rates.items() if what.startswith("timm"))
    rows = [(what, passes, f"{rate:.1f}", f"{rate / loop:.2f}") for (what, passes), rate in rates.items()]
    head = (
        f"{machine(torch.device('cpu'))}; torch {torch.__version__}; {datetime.date.today()}. {model}, random weights, "
        f"{images} JPEGs of 500 x 375, turns: {rounds}, median, ours in {precision}, seed 0."
    )
    text = f"{head}\n\n{markdown(HEAD, rows)}\n"
    typer.echo(text)
    if write:
        command = f"python -m benchmarks.prediction --images {images} --rounds {rounds} --precision {precision} --write"
        replace_between(PAGE, "prediction", f"{text}\n```sh\n{command}\n```\n")


def _ours(learner: Learner, files: list[Path]) -> Callable[[], int]:
    return lambda: sum(1 for _ in learner.predictions(files))


if __name__ == "__main__":
    typer.run(main)
