"""Time of a frozen layer by operation: ``python -m benchmarks.profile``."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.cases import ARCHS, random_backbone, tokens
from benchmarks.limits import seconds
from benchmarks.machine import LIMITED, PAGE, machine, markdown
from ostinato.report.tables import replace_between
from ostinato.training.memory import keep_freed_memory
from ostinato.training.precision import choose_precision, precision_name

CPU = torch.device("cpu")
HEAD = ("operations", "forward ms", "share", "forward and backward ms", "share")
PRODUCTS = ("linear maps", "products of heads", "fused attention")
"""Groups of matrix products, and of fused attention, which mostly consists of them."""
GROUPS = {
    "linear maps": ("linear", "addmm", "mm", "_linear_pointwise"),
    "products of heads": ("bmm", "baddbmm", "baddbmm_"),
    "fused attention": (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "softmax": ("softmax", "_softmax", "_softmax_backward_data"),
    "GELU": ("gelu", "gelu_backward"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward"),
    "residual sums": ("add", "add_"),
    "copies and casts": ("copy_", "cat", "clone", "contiguous", "_to_copy", "fill_", "zero_", "constant_pad_nd"),
    "the rest": (),
}
"""Operations of torch, without their namespace, by what they do in a layer; the last group takes all others."""
OF = {operation: group for group, operations in GROUPS.items() for operation in operations}


def group(operation: str) -> str:
    """The group of an operation, by its name in torch, such as ``aten::mm``."""
    return OF.get(operation.rpartition("::")[2], "the rest")


def spent(call: Callable[[], object], rounds: int) -> tuple[dict[str, float], float]:
    """Measure the milliseconds of a call per group, and of the whole call without the profiler.

    Both are of the fastest round, since other work on the machine only adds time, and the groups of a round sum up.

    Args:
        call: function that computes in this thread.
        rounds: rounds with and without the profiler, in turns, after two warm-up rounds.

    Returns:
        Time for every key of ``GROUPS``, without nested operations, and the time without the profiler.
    """
    turns: list[dict[str, float]] = []
    plain: list[float] = []
    for _ in range(rounds + 2):
        took = dict.fromkeys(GROUPS, 0.0)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        for operation in profiler.key_averages():
            took[group(operation.key)] += operation.self_cpu_time_total / 1e3
        turns.append(took)
        plain.append(seconds(call, CPU) * 1e3)
    return min(turns[2:], key=lambda took: sum(took.values())), min(plain[2:])


def layer(model: str, batch: int, dtype: torch.dtype) -> tuple[Callable[[], object], Callable[[], object]]:
    """Make calls of a frozen layer without edits: forward alone, and with the gradient of its input.

    Args:
        model: key of ``ARCHS``.
        batch: number of images.
        dtype: dtype of weights and states.
    """
    backbone = random_backbone(model)
    backbone.cast(dtype)
    block = backbone.encoder.blocks[0]
    h = torch.randn(batch, tokens(model), ARCHS[model].dim).to(dtype)
    entering, leaving = h.clone().requires_grad_(), torch.randn_like(h)

    @torch.inference_mode()
    def forward() -> object:
        return block(h)

    def both() -> object:
        return torch.autograd.grad(block(entering), entering, leaving)

    return forward, both


def table(forward: dict[str, float], both: dict[str, float]) -> str:
    """Format the groups and their sum in Markdown, without groups that take no time."""
    sums = [sum(took.values()) for took in (forward, both)]
    lines = [(name, forward[name], both[name]) for name in GROUPS] + [("all", *sums)]
    rows = []
    for name, *took in lines:
        cells = [cell for ms, of in zip(took, sums, strict=True) for cell in (f"{ms:.2f}", f"{ms / of * 100:.1f} %")]
        if max(took) >= 0.005:
            rows.append((name, *cells))
    return markdown(HEAD, rows)


def bound(both: dict[str, float]) -> str:
    """Describe the time of the layer, forward and backward, if only its products took time."""
    products, total = sum(both[name] for name in PRODUCTS), sum(both.values())
    return (
        f"Forward and backward, the products alone take {products:.1f} of {total:.1f} ms: without everything else, "
        f"{(1 - products / total) * 100:.0f} % less time."
    )


def main(
    model: Annotated[str, typer.Option(help="base or tiny: ViT-B/16 or ViT-Ti/16 at 224, random weights")] = "base",
    batch: Annotated[int, typer.Option(help="images")] = 24,
    precision: Annotated[str, typer.Option(help="auto, bf16 or fp32")] = "auto",
    threads: Annotated[int, typer.Option(help="threads; 0 for torch's default")] = 0,
    rounds: Annotated[int, typer.Option(help="rounds; the fastest counts")] = 9,
    write: Annotated[bool, typer.Option(help="put the table into docs/performance.md")] = False,
) -> None:
    """Profile a frozen layer on the CPU and group its time by operation."""
    if threads:
        torch.set_num_threads(threads)
    keep_freed_memory()
    dtype = choose_precision(precision, CPU).dtype
    name = precision_name(dtype)
    forward, both = layer(model, batch, dtype)
    (alone, alone_plain), (profiled, plain) = spent(forward, rounds), spent(both, rounds)
    text = "\n".join(
        [
            f"{machine(CPU)}; torch {torch.__version__.split('+')[0]}; {datetime.date.today()}. One layer of ViT "
            f"{model}/16 at 224, batch {batch}, {name}, the fastest of {rounds} rounds. Without the profiler: "
            f"{alone_plain:.1f} and {plain:.1f} ms.",
            "",
            table(alone, profiled),
            "",
            bound(profiled),
            "",
            "```sh",
            f"{f'ONEDNN_MAX_CPU_ISA={LIMITED} ' if LIMITED else ''}python -m benchmarks.profile --model {model} "
            f"--batch {batch} --precision {name} --threads {torch.get_num_threads()} --rounds {rounds} --write",
            "```",
        ]
    )
    print(text)
    if write:
        replace_between(PAGE, "/".join(("profile", model, name, *([LIMITED.lower()] if LIMITED else []))), text + "\n")


if __name__ == "__main__":
    typer.run(main)
