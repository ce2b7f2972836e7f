"""Parts of ``benchmarks/gpu.sh``, one per process: ``python -m benchmarks.gpu PART --device cuda --out FOLDER``."""

from __future__ import annotations

import datetime
import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.cases import ARCHS, Case, Measured, all_cases, measure, tokens
from benchmarks.limits import Shapes, multiply_rate
from benchmarks.machine import driver, machine, markdown, memory
from ostinato.contract import check_method
from ostinato.errors import InputError
from ostinato.lookup import get_method, methods
from ostinato.tensor_files import tensors_of
from ostinato.training.memory import keep_freed_memory
from ostinato.training.precision import choose_precision, precision_name, resolve_device

SHARE, RATIO = 0.5, 10
"""Goals: share of the rate of bf16 products in training, and speed relative to the reference."""

SPEED_HEAD = (
    "case",
    "reference images/s",
    "ours images/s",
    f"ratio (goal: {RATIO})",
    "GFLOP per image",
    "TFLOP/s",
    "limit TFLOP/s",
    f"share of the limit (goal in training: {SHARE:.0%})",
    "peak memory GiB",
)


class Part(StrEnum):
    """Parts of the script."""

    machine = "machine"
    speed = "speed"
    contract = "contract"
    resume = "resume"


@dataclass(frozen=True)
class Asked:
    """Options of a part.

    Attributes:
        device: device to measure.
        out: output folder.
        seconds: time after which no further piece begins.
        small: run a small form to test the part.
    """

    device: torch.device
    out: Path
    seconds: float
    small: bool

    @property
    def shapes(self) -> Shapes | None:
        """Shapes of the matrix products for the limit; None for the default of the device."""
        return ((512, 512, 512),) if self.small else None


# Machine


def tell_machine(asked: Asked) -> list[str]:
    """Print name, driver, versions, memory and rates."""
    device = asked.device
    print(f"Device: {machine(device)}")
    print(f"Driver: {driver(device)}; CUDA {torch.version.cuda if device.type == 'cuda' else 'not used'}")
    print(f"Memory: {memory(device) / 2**30:.1f} GiB; {os.cpu_count()} processor cores")
    print(f"Python {sys.version.split()[0]}; torch {torch.__version__}")
    chosen = choose_precision("auto", device)
    print(f"precision=auto is {precision_name(chosen.dtype)}: {chosen.reason}")
    for dtype, note in ((torch.bfloat16, ""), (torch.float32, " (as torch does by default, without TF32)")):
        rate = multiply_rate(dtype, device, shapes=asked.shapes)
        print(f"Matrix products in {precision_name(dtype)}{note}: {rate / 1e12:.3g} TFLOP/s")
    return []


# Speed


def goals(cases: list[tuple[Case, Measured, float]]) -> list[str]:
    """Format a line per goal with the cases, given with FLOP per image, that reach and miss it."""
    shares = {c.name: flops / m.ours / m.limit for c, m, flops in cases if c.training}
    ratios = {c.name: m.reference / m.ours for c, m, _ in cases if not math.isnan(m.reference)}
    lines = []
    for what, figures, goal, shown in (
        (f"at least {SHARE:.0%} of the limit in training", shares, SHARE, "{:.0%}"),
        (f"at least {RATIO} times the reference", ratios, RATIO, "{:.1f}"),
    ):
        below = [f"{name} ({shown.format(value)})" for name, value in figures.items() if value < goal]
        text = f"Goal: {what}: {len(figures) - len(below)} of {len(figures)} cases reach it"
        lines.append(f"{text}; not {', '.join(below)}." if below else f"{text}.")
    return lines


def speed_row(case: Case, measured: Measured, flops: float) -> tuple[str, ...]:
    """Row of the table; an asterisk marks arithmetic counted by torch."""
    rate, known = flops / measured.ours, not math.isnan(measured.reference)
    return (
        case.name,
        f"{1 / measured.reference:.1f}" if known else "-",
        f"{1 / measured.ours:.1f}",
        f"{measured.reference / measured.ours:.1f}" if known else "-",
        f"{flops / 1e9:.3g}{'' if case.flops else '*'}",
        f"{rate / 1e12:.3g}",
        f"{measured.limit / 1e12:.3g}",
        f"{rate / measured.limit:.0%}",
        "-" if math.isnan(measured.memory) else f"{measured.memory / 2**30:.2f}",
    )


def tell_speed(asked: Asked) -> list[str]:
    """Measure every case and write the table to ``speed.md`` after each."""
    keep_freed_memory()
    torch.backends.cudnn.allow_tf32 = False  # torch allows it in convolutions, so that the reference would have some
    end = time.perf_counter() + asked.seconds
    device, dtype = asked.device, choose_precision("auto", asked.device).dtype
    model, batch, rounds = ("small", 8, 1) if asked.small else ("base", 128, 5)
    side = (tokens(model) - 1) ** 0.5 * 16
    about = (
        f"{machine(device)}; driver {driver(device)}; torch {torch.__version__.split('+')[0]}; "
        f"{datetime.date.today()}. ViT {model}/16 at {side:.0f}, random weights, batch {batch}, median of {rounds}, "
        f"seed 0, our frozen weights in {precision_name(dtype)}, the reference in fp32 without TF32. Batches are in "
        "memory, where loading processes would have put them. GFLOP per image: those that cannot be avoided or, with "
        "an asterisk, those of ours that torch counts. Limit: large matrix products in the precision of our weights, "
        "measured in turns with the steps. Memory is ours alone."
    )
    print(about, flush=True)
    rows: list[tuple[str, ...]] = []
    found: list[tuple[Case, Measured, float]] = []
    failed = []
    for case in all_cases():
        if time.perf_counter() > end:
            failed.append(f"{case.name}: not measured, no time is left")
            continue
        began = time.perf_counter()
        try:
            measured = _measured(case, model, batch, rounds, asked, dtype)
        except Exception as error:  # continue with the other cases
            failed.append(f"{case.name}: {type(error).__name__}: {error}")
            continue
        finally:
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
        flops = case.flops(ARCHS[model], tokens(model)) if case.flops else measured.done
        rows.append(speed_row(case, measured, flops))
        found.append((case, measured, flops))
        print("  ".join(rows[-1]), f" [{time.perf_counter() - began:.0f} s]", flush=True)
        text = "\n".join([about, "", markdown(SPEED_HEAD, rows), "", *goals(found)])
        (asked.out / "speed.md").write_text(text + "\n", encoding="utf-8")
    for line in goals(found):
        print(line)
    return failed


def _measured(case: Case, model: str, batch: int, rounds: int, asked: Asked, dtype: torch.dtype) -> Measured:
    """Measure a case beside the reference, or alone if the device has no memory for both."""

    def one(with_reference: bool) -> Measured:
        return measure(
            case, model, batch=batch, rounds=rounds, device=asked.device, dtype=dtype, with_reference=with_reference,
            count=True, shapes=asked.shapes,
        )  # fmt: skip

    try:
        return one(True)
    except torch.OutOfMemoryError:
        print(f"{case.name}: the reference does not fit into the memory and is left out.")
    gc.collect()
    torch.cuda.empty_cache()
    return one(False)


# Contract


@dataclass(frozen=True)
class Held:
    """Results of the contract on a method.

    Attributes:
        name: name of the method.
        outcomes: numbers of checks by outcome.
        broken: broken checks, each with its encoder.
        seconds: duration.
    """

    name: str
    outcomes: Counter[str]
    broken: list[str]
    seconds: float


def hold(name: str, device: str) -> Held:
    """Check a method against the contract on a device."""
    torch.set_num_threads(1)
    began, outcomes, broken = time.perf_counter(), Counter[str](), list[str]()
    for one in check_method(get_method(name), torch.device(device)):
        outcomes[one.outcome] += 1
        if one.outcome == "broken":
            broken.append(f"{name} on {one.kind}: {one.check}: {one.found}")
    return Held(name, outcomes, broken, time.perf_counter() - began)


def tell_contract(asked: Asked) -> list[str]:
    """Check all methods against the contract on the device, several at a time."""
    left = ["simplecil"] if asked.small else list(methods())
    failed = []
    for name, found in _each_held(list(left), asked):
        left.remove(name)
        if isinstance(found, Exception):
            failed.append(f"{name}: {type(found).__name__}: {found}")
            continue
        told = ", ".join(f"{n} {outcome}" for outcome, n in sorted(found.outcomes.items()))
        print("\n".join([f"{name}: {told} [{found.seconds:.0f} s]", *found.broken]), flush=True)
        failed += found.broken
    return failed + [f"{name}: not held against the contract, no time is left" for name in left]


def _each_held(names: list[str], asked: Asked) -> Iterator[tuple[str, Held | Exception]]:
    """Yield results by method as they finish, until the time is over."""
    device = str(asked.device)
    if len(names) == 1:
        yield names[0], hold(names[0], device)
        return
    workers = max(1, min(len(names), (os.cpu_count() or 2) * 3 // 4))
    # Forks cannot share a GPU, and a process cannot use it after an error in a kernel.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawn, max_tasks_per_child=1)
    futures = {pool.submit(hold, name, device): name for name in names}
    try:
        for future in as_completed(futures, asked.seconds):
            error = future.exception()
            yield (
                futures[future],
                future.result() if error is None else RuntimeError(f"{type(error).__name__}: {error}"),
            )
    except TimeoutError:
        for process in multiprocessing.active_children():
            process.kill()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


# Resume


def tell_resume(asked: Asked) -> list[str]:
    """Kill a run after its first checkpoint, resume it, and compare its results with those of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as name:
        folder, end = Path(name), time.perf_counter() + asked.seconds
        words = [
            "run", "dualprompt", "data=digits", f"device={asked.device}", "train.epochs=1", "train.batch_size=8",
            f"checkpoint.every={1 if asked.small else 5}",
        ]  # fmt: skip
        if asked.small:
            words += ["stream.step=5", "data.limit_per_class=6", "data.test_limit_per_class=5"]
        whole, cut = folder / "whole", folder / "cut"
        together = [_begun(folder, *words, f"out={run}") for run in (whole, cut)]
        checkpoints = _killed_behind_checkpoint(together[1], cut, end)
        _must_end(together[0], end)
        if isinstance(checkpoints, str):
            return [checkpoints]
        print(f"Killed behind checkpoint {checkpoints[-1]}.", flush=True)
        _must_end(_begun(folder, "resume", str(cut), f"device={asked.device}"), end)
        failed = []
        matrices = [(run / "accuracy_matrix.csv").read_text() for run in (whole, cut)]
        same = matrices[0] == matrices[1]
        print(f"Accuracy matrix of the resumed run: {'the same' if same else 'another one'}.")
        apart = differences(whole, cut)
        print(f"Learned tensors of the resumed run: {apart or 'bit-equal'}.")
        if apart:  # tell an effect of the resume from one of the device
            again = folder / "again"
            _must_end(_begun(folder, *words, f"out={again}"), end)
            print(f"Learned tensors of two whole runs: {differences(whole, again) or 'bit-equal'}.")
        if not same:
            failed.append(f"the accuracy matrix of a whole run is\n{matrices[0]}and of a resumed one\n{matrices[1]}")
        return failed


def _begun(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ostinato", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _must_end(process: subprocess.Popen[str], end: float) -> None:
    """Wait for a command that must succeed.

    Raises:
        RuntimeError: if it fails or the time is over.
    """
    try:
        said, _ = process.communicate(timeout=max(1.0, end - time.perf_counter()))
    except subprocess.TimeoutExpired:
        process.kill()
        raise RuntimeError(f"no time is left for {process.args}") from None
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode} of {process.args}:\n{said[-3000:]}")


def _killed_behind_checkpoint(process: subprocess.Popen[str], run: Path, end: float) -> list[str] | str:
    """Send SIGKILL after the first checkpoint; return the names of checkpoints, or an error."""
    while time.perf_counter() < end and process.poll() is None:
        there = sorted(path.name for path in run.glob("checkpoints/*") if path.name.isdigit())
        if there:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            if process.returncode != -signal.SIGKILL or (run / "summary.json").exists():
                return "the run ended before it was killed"
            return there
        time.sleep(0.01)
    process.kill()
    said, _ = process.communicate()
    return f"there was no checkpoint to kill it behind:\n{said[-3000:]}"


def differences(one: Path, other: Path) -> str:
    """Describe how many learned tensors of two runs differ, and the largest difference; empty if bit-equal."""
    first, second = _learned(one), _learned(other)
    if not first or first.keys() != second.keys():
        return f"of other names: {sorted(first.keys() ^ second.keys()) or 'none at all'}"
    apart = [k for k in first if first[k].shape != second[k].shape or not torch.equal(first[k], second[k])]
    if not apart:
        return ""
    of_one_shape = [k for k in apart if first[k].shape == second[k].shape]
    most = max((float((first[k].double() - second[k].double()).abs().max()) for k in of_one_shape), default=math.inf)
    return f"{len(apart)} of {len(first)} differ, by {most:.2g} at most"


def _learned(run: Path) -> dict[str, Tensor]:
    """Read the learned tensors of a finished run."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(run.glob("artifact/*.safetensors")):
        tensors |= tensors_of(file.read_bytes(), file)
    return tensors


PARTS = {
    Part.machine: tell_machine,
    Part.speed: tell_speed,
    Part.contract: tell_contract,
    Part.resume: tell_resume,
}


def main(
    part: Annotated[Part, typer.Argument(help="part to run")],
    out: Annotated[Path, typer.Option(help="output folder")],
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N")] = "cuda",
    seconds: Annotated[float, typer.Option(help="time after which no further piece begins")] = 280.0,
    small: Annotated[bool, typer.Option(help="run a small form to test the part")] = False,
) -> None:
    """Run a part and print its findings; exit code 1 if anything failed."""
    out.mkdir(parents=True, exist_ok=True)
    try:
        failed = PARTS[part](Asked(resolve_device(device), out, seconds, small))
    except (InputError, RuntimeError) as error:
        failed = [f"{type(error).__name__}: {error}"]
    for line in failed:
        print(f"FAILED: {part}: {line}")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
