"""Speed of the package: ``python -m benchmarks``, or ``make benchmark``."""

from __future__ import annotations

import datetime
import math
import os
import shlex
import subprocess
import sys
from typing import Annotated

import torch
import typer

from benchmarks.cases import ARCHS, CASES, Case, Measured, measure, tokens
from benchmarks.limits import layer_rate, multiply_rate
from benchmarks.machine import LIMITED, PAGE, machine, markdown
from ostinato.report.tables import replace_between
from ostinato.training.memory import keep_freed_memory
from ostinato.training.precision import choose_precision, precision_name, resolve_device

HEAD = (
    "case",
    "reference images/s",
    "ours images/s",
    "ratio",
    "GFLOP per image",
    "GFLOP/s",
    "limit GFLOP/s",
    "share of the limit",
)


def row(case: Case, measured: Measured, model: str) -> tuple[str, ...]:
    """Row of the table."""
    counted = ("-",) * 4
    if case.flops:
        flops = case.flops(ARCHS[model], tokens(model))
        rate = flops / measured.ours
        counted = (
            f"{flops / 1e9:.1f}",
            f"{rate / 1e9:.0f}",
            f"{measured.limit / 1e9:.0f}",
            f"{rate / measured.limit * 100:.0f} %",
        )
    return (
        case.name,
        "-" if math.isnan(measured.reference) else f"{1 / measured.reference:.2f}",
        f"{1 / measured.ours:.2f}",
        "-" if math.isnan(measured.reference) else f"{measured.reference / measured.ours:.1f}",
        *counted,
    )


def peak_memory(model: str, batch: int, threads: int, precision: str) -> str:
    """Measure the peak resident memory of DualPrompt's training in a separate process."""
    command = [sys.executable, "-m", "benchmarks.memory", model, str(batch), str(threads), precision]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(
    batch: Annotated[int, typer.Option(help="images per step")] = 24,
    rounds: Annotated[int, typer.Option(help="rounds; the median counts")] = 5,
    model: Annotated[str, typer.Option(help="base or tiny: ViT-B/16 or ViT-Ti/16 at 224, random weights")] = "base",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, typer.Option(help="precision of our frozen weights: auto, bf16 or fp32")] = "auto",
    threads: Annotated[int, typer.Option(help="threads; 0 for torch's default")] = 0,
    only: Annotated[str, typer.Option(help="cases whose name has this part")] = "",
    reference: Annotated[bool, typer.Option(help="measure the reference too")] = True,
    write: Annotated[bool, typer.Option(help="put the table into docs/performance.md")] = False,
) -> None:
    """Measure the package, the plain implementation and the machine in turns in one process."""
    keep_freed_memory()
    if threads:
        torch.set_num_threads(threads)
    where = resolve_device(device)
    dtype = choose_precision(precision, where).dtype
    table = "/".join(["speed", model, where.type, *(p for p in (precision, LIMITED.lower()) if p not in ("auto", ""))])
    if write and f"<!-- table:{table} -->" not in PAGE.read_text(encoding="utf-8"):
        raise typer.BadParameter(f"{PAGE} has no place for it: add <!-- table:{table} --> and <!-- /table:{table} -->.")
    limits = {kind: multiply_rate(kind, where) for kind in (torch.bfloat16, torch.float32)}
    own = layer_rate(ARCHS[model], batch * tokens(model), dtype, where)
    text = [
        f"{machine(where)}; torch {torch.__version__.split('+')[0]}; {datetime.date.today()}. ViT "
        f"{model}/16 at 224, batch {batch}, median of {rounds}, seed 0, our frozen weights in {precision_name(dtype)}.",
        f"Matrix products: {limits[torch.bfloat16] / 1e9:.0f} GFLOP/s in bf16, "
        f"{limits[torch.float32] / 1e9:.0f} GFLOP/s in fp32. A layer's four linear maps, forward and backward, with "
        f"nothing between them: {own / 1e9:.0f} GFLOP/s in {precision_name(dtype)}, "
        f"{own / limits[dtype] * 100:.0f} % of the limit.",
        "",
    ]
    print("\n".join(text), flush=True)
    rows = []
    for case in CASES:
        if only.lower() not in case.name.lower():
            continue
        measured = measure(case, model, batch=batch, rounds=rounds, device=where, dtype=dtype, with_reference=reference)
        rows.append(row(case, measured, model))
        print("  ".join(rows[-1]), flush=True)
    text.append(markdown(HEAD, rows))
    if where.type == "cpu" and not only:
        text += ["", peak_memory(model, batch, torch.get_num_threads(), precision)]
        print(text[-1])
    if write:
        given = {"batch": batch, "rounds": rounds, "model": model, "precision": precision, "only": only}
        words = " ".join(f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value)
        words += "" if reference else " --no-reference"
        limit = f"ONEDNN_MAX_CPU_ISA={LIMITED} " if LIMITED else ""
        text += ["", "```sh", f"{limit}python -m benchmarks {words} --write", "```"]
        replace_between(PAGE, table, "\n".join(text) + "\n")
        print(f"Written to {PAGE}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    typer.run(main)
