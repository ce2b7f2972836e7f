"""Measured speed of bf16 on this processor, kept for the machine."""

from __future__ import annotations

import os
import platform
import time
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ostinato.backbones.edits import frozen_linear
from ostinato.errors import DataError
from ostinato.files import read_json, write_json
from ostinato.paths import user_path

_ROWS, _WIDTH, _ROUNDS = 256, 768, 15


def bf16_gain() -> float:
    """Time of a linear map in fp32 over its time in bf16, on this processor.

    It is measured, because many processors with AVX-512 emulate bf16, and its instructions are slower than fp32 on some
    and twice as fast on others. The first call on a machine measures in one thread, in about 0.1 s; later ones read the
    result from ``~/.cache/ostinato/rates.json`` (or below ``$XDG_CACHE_HOME``), so that a machine always decides alike.
    """
    file, key = _cache(), f"{_processor()}, torch {torch.__version__}"
    try:
        known = read_json(file)
    except DataError:  # missing or damaged: measure again
        known = {}
    gain = known.get(key)
    if isinstance(gain, float) and gain > 0:
        return gain
    gain = _measured()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known | {key: gain})
    except OSError:  # no writable home: measure each time
        pass
    return gain


def _cache() -> Path:
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "ostinato" / "rates.json"


def _processor() -> str:
    """The processor's name and the instructions that torch uses."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    # Processors of one name may differ in their flags.
    flags = sha256(first.get("flags", "").encode()).hexdigest()[:8]
    name = first.get("model name", platform.processor())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "all instructions"
    return f"{name}, flags {flags}, {torch.backends.cpu.get_cpu_capability()}, {limit}"


def _measured() -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads would wait for each other behind other processes
    try:
        return _measured_alone()
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def _measured_alone() -> float:
    draw = torch.Generator().manual_seed(0)
    plain = [torch.randn(*shape, generator=draw) for shape in ((_ROWS, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH,))]
    rounded = [tensor.bfloat16() for tensor in plain]
    _seconds(plain)
    _seconds(rounded)  # warm-up: the first call prepares the kernel
    pairs = [(_seconds(plain), _seconds(rounded)) for _ in range(_ROUNDS)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def _seconds(operands: list[Tensor]) -> float:
    began = time.perf_counter()
    frozen_linear(operands[0], operands[1], operands[2])
    return time.perf_counter() - began
