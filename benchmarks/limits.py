"""Limits of the machine, and arithmetic of a pass."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ostinato.backbones import Arch

Shapes = Sequence[tuple[int, int, int]]
"""Matrix products (m, k, n)."""

SHAPES: dict[str, Shapes] = {
    "cpu": ((4096, 4096, 4096), (4728, 768, 3072), (4728, 3072, 768)),
    "cuda": ((8192, 8192, 8192), (25216, 768, 3072), (25216, 3072, 768)),
}
"""Products for the limit, their best rate: a large square, and the MLP of ViT-B at batch 24, or 128 on a GPU."""

QUEUED = {"cpu": 1, "cuda": 10}
"""Products that are timed together, since waiting for a single one would take part of its time on a GPU."""


def synchronise(device: torch.device) -> None:
    """Wait for the queue of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def _usual(call: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of ``rounds`` calls after two warm-up calls."""
    return statistics.median([seconds(call, device) for _ in range(rounds + 2)][2:])


def multiply_rate(dtype: torch.dtype, device: torch.device, rounds: int = 7, shapes: Shapes | None = None) -> float:
    """Measure the FLOP/s of matrix products x W^T, the median of the best shape.

    Args:
        dtype: dtype of the factors; fp32 is torch's default, on a GPU without TF32.
        device: device to measure.
        rounds: rounds; the median counts.
        shapes: shapes of the products; None for ``SHAPES``.
    """
    rates, times = [], QUEUED[device.type]
    for m, k, n in shapes or SHAPES[device.type]:
        x, w = torch.randn(m, k, device=device).to(dtype), torch.randn(n, k, device=device).to(dtype)

        def products(x: Tensor = x, w: Tensor = w) -> None:
            for _ in range(times):
                F.linear(x, w)

        rates.append(times * 2 * m * k * n / _usual(products, device, rounds))
    return max(rates)


def layer_rate(arch: Arch, rows: int, dtype: torch.dtype, device: torch.device, rounds: int = 7) -> float:
    """Measure the FLOP/s of a layer's four linear maps, forward and for the gradient of their inputs.

    A training step would reach this rate if it had only these products.

    Args:
        arch: sizes of the encoder.
        rows: number of input states (samples times positions).
        dtype: dtype of states and weights.
        device: device to measure.
        rounds: rounds; the median counts.
    """
    flops, took = 0.0, 0.0
    for out, into in ((3 * arch.dim, arch.dim), *map(arch.shape_of, ("proj", "fc1", "fc2"))):
        weight = torch.randn(out, into, device=device).to(dtype)
        x, grad = torch.randn(rows, into, device=device).to(dtype), torch.randn(rows, out, device=device).to(dtype)

        def step(x: Tensor = x, grad: Tensor = grad, weight: Tensor = weight) -> None:
            F.linear(x, weight)
            grad @ weight

        took += _usual(step, device, rounds)
        flops += 2 * 2 * rows * out * into
    return flops / took


def counter() -> FlopCounterMode:
    """Counter of torch's arithmetic in products, attention and convolutions within the block."""
    linear = torch.ops.mkldnn._linear_pointwise

    def flops(x: Sequence[int], weight: Sequence[int], *_: object, **more: object) -> int:  # noqa: ARG001
        return 2 * math.prod(x) * weight[0]

    return FlopCounterMode(display=False, custom_mapping={linear: flops})


def forward_flops(arch: Arch, tokens: int, *, prefix: int = 0, start: int = 0, patch_inputs: int = 768) -> float:
    """Least arithmetic of a pass per image; the last layer computes all keys and values, and else the read-out token.

    Args:
        arch: sizes of the encoder.
        tokens: positions N of an image.
        prefix: mean prefix positions per layer.
        start: first computed layer; 0 includes the patches.
        patch_inputs: numbers in a patch.
    """
    d, n = arch.dim, tokens
    total = 2.0 * (n - 1) * patch_inputs * d if start == 0 else 0.0
    for layer in range(start, arch.depth):
        rows = 1 if layer == arch.depth - 1 else n
        keys_values = 2 * n * 2 * d * d
        rest = 2 * rows * (2 * d * d + 2 * d * arch.mlp_dim)  # queries, projection, MLP
        attention = 2 * 2 * rows * (n + prefix) * d
        total += keys_values + rest + attention
    return total


def training_flops(arch: Arch, tokens: int, *, prefix: int = 0, first: int = 0, patch_inputs: int = 768) -> float:
    """Least arithmetic of training the edits of layer ``first`` and above: a pass and its gradient for the inputs.

    The weights are frozen, so that a linear map costs as much backward as forward, and attention twice as much. The
    lowest trained layer needs no gradient for its inputs.
    """
    d, n = arch.dim, tokens
    total = forward_flops(arch, tokens, prefix=prefix, patch_inputs=patch_inputs)
    for layer in range(first, arch.depth):
        rows = 1 if layer == arch.depth - 1 else n
        back = 2 * rows * (d * d + 2 * d * arch.mlp_dim) + 2 * 2 * 2 * rows * (n + prefix) * d
        if layer > first:
            back += 2 * (2 * n + rows) * d * d
        total += back
    return total
