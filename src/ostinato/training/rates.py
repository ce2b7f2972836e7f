"""How fast this processor multiplies matrices in a precision: measured once, and kept for the machine."""

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

    Instructions do not tell: bf16 is emulated on many processors with AVX-512, and the instructions for it are slower
    than fp32 on some and twice as fast on others. The first call on a machine measures in one thread, which takes some
    0.1 s; later ones read the result from ``~/.cache/ostinato/rates.json`` (below ``$XDG_CACHE_HOME`` where that is
    set), so that a machine always decides alike.
    """
    file, key = _cache(), f"{_processor()}, torch {torch.__version__}"
    try:
        known = read_json(file)
    except DataError:  # none yet, or damaged: measured anew
        known = {}
    gain = known.get(key)
    if isinstance(gain, float) and gain > 0:
        return gain
    gain = _measured()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, known | {key: gain})
    except OSError:  # a home that cannot be written: measured each time
        pass
    return gain


def _cache() -> Path:
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "XDG_CACHE_HOME") / "ostinato" / "rates.json"


def _processor() -> str:
    """The processor's name and what torch uses of it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.exists() else []
    first = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    # Two kinds of a processor may share a name; their flags differ.
    flags = sha256(first.get("flags", "").encode()).hexdigest()[:8]
    name = first.get("model name", platform.processor())
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "all instructions"
    return f"{name}, flags {flags}, {torch.backends.cpu.get_cpu_capability()}, {limit}"


def _measured() -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several wait for each other, for as long as other processes please
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
    _seconds(rounded)  # the first call prepares the kernel
    pairs = [(_seconds(plain), _seconds(rounded)) for _ in range(_ROUNDS)]
    return min(a for a, _ in pairs) / min(b for _, b in pairs)


def _seconds(operands: list[Tensor]) -> float:
    began = time.perf_counter()
    frozen_linear(operands[0], operands[1], operands[2])
    return time.perf_counter() - began
