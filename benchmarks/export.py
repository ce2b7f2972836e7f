"""Exported files beside PyTorch: ``python -m benchmarks.export``.

Every registered method of images learns on a tiny encoder and is written in every format: the first table holds the
largest differences, with the reasons of refusals. The second one holds the times of batches on an encoder of real size.
"""

from __future__ import annotations

import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import timm
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.machine import machine, markdown
from benchmarks.prediction import NAME, taught
from ostinato.backbones import ClipBackbone, TextBackbone
from ostinato.contract.harness import learn, make
from ostinato.contract.tiny_models import SIDE, Kind, tiny_stream
from ostinato.errors import InputError
from ostinato.interop.exporting import Scores, check_images, convert, without_caches
from ostinato.interop.formats import FORMATS, Run
from ostinato.lookup import get_method, methods
from ostinato.report.tables import replace_between

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "export.md"
PARITY = ("method", *FORMATS)
SIZES = (1, 8)
LATENCY = ("what computes", *(f"batch {size}, ms" for size in SIZES), "file, MB")


def kind_of(name: str) -> Kind | None:
    """Kind of tiny encoder of a method; None if it needs one of texts."""
    needs = get_method(name).needs
    if issubclass(needs, TextBackbone):
        return None
    return "clip" if issubclass(needs, ClipBackbone) else "image"


def parity(name: str, kind: Kind) -> tuple[tuple[str, ...], list[str]]:
    """Row of the first table, largest differences or "refused", and the reasons of refusals."""
    method = learn(make(name, kind), tiny_stream(kind))
    cells, reasons = [], []
    for to in FORMATS:
        try:
            cells.append(f"{convert(method, check_images(SIDE), '{}', to)[1]:.0e}")
        except InputError as error:
            cells.append("refused")
            reason = str(error).removeprefix("export: ").partition(" 'ostinato export")[0]
            reasons.append(f"- `{name}` as {to}: {reason}")
    return (f"`{name}`", *cells), reasons


def milliseconds(run: Run, images: Tensor, rounds: int) -> float:
    """Median time of a batch."""
    times = []
    for _ in range(1 + rounds):
        start = time.perf_counter()
        run(images)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def latency(methods: list[str], model: str, rounds: int) -> list[tuple[str, ...]]:
    """Rows of the second table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit.safetensors"
        save_file(timm.create_model(model, pretrained=False, num_classes=0).state_dict(), weights)
        for name in methods:
            learner = taught(name, weights, model, 64, "fp32")
            images = check_images(learner.eval_transform.size).repeat(2, 1, 1, 1)
            files = {to: convert(learner.method, images[:5], "{}", to)[0] for to in FORMATS}
            with torch.inference_mode(), without_caches(learner.method):
                runs: dict[str, tuple[Run, str]] = {"PyTorch": (Scores(learner.method), "-")}
                runs |= {to: (FORMATS[to].load(data), f"{len(data) / 1e6:.1f}") for to, data in files.items()}
                for what, (run, size) in runs.items():
                    times = [f"{milliseconds(run, images[:n], rounds):.1f}" for n in SIZES]
                    rows.append((f"`{name}`, {what}", *times, size))
    return rows


def main(
    only: Annotated[str, typer.Option(help="Methods of the first table, with commas; all by default.")] = "",
    timed: Annotated[str, typer.Option(help="Methods of the second table, with commas.")] = "simplecil,dualprompt",
    model: Annotated[str, typer.Option(help="timm's name of the timed encoder; its weights are random.")] = NAME,
    rounds: Annotated[int, typer.Option(help="Rounds; the median counts.")] = 20,
    write: Annotated[bool, typer.Option("--write", help="Put the tables into docs/howto/export.md.")] = False,
) -> None:
    """Compare scores in every format, then measure times."""
    rows, refused = [], []
    for name in only.split(",") if only else methods():
        if (kind := kind_of(name)) is not None:
            row, reasons = parity(name, kind)
            rows.append(row)
            refused += reasons
            typer.echo("\n".join(["  ".join(row), *reasons]))
    times = latency(timed.split(","), model, rounds)
    version = torch.__version__.split("+")[0]
    about = f"{machine(torch.device('cpu'))}; torch {version}; {datetime.date.today()}."
    parts = {
        "export-parity": f"{about} Tiny encoder, five classes in three tasks.\n\n{markdown(PARITY, rows)}\n"
        + ("\nRefused:\n\n" + "\n".join(refused) + "\n" if refused else ""),
        "export-latency": f"{about} {model}, random weights, ten classes, median of {rounds}, fp32.\n\n"
        f"{markdown(LATENCY, times)}\n",
    }
    for name, text in parts.items():
        typer.echo(text)
        if write:
            replace_between(PAGE, name, f"{text}\n```sh\npython -m benchmarks.export --write\n```\n")


if __name__ == "__main__":
    typer.run(main)
