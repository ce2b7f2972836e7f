"""Where figures come from, in words, and the page that they go to."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

LIMITED = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
"""Instructions beyond which products on the CPU use none, so that a machine can stand for one with fewer."""

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    amx = any("amx_bf16" in line for line in lines if line.startswith("flags"))
    units = f", products limited to {LIMITED}" if LIMITED else ", AMX" if amx else ""
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{units}, {torch.get_num_threads()} threads"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
