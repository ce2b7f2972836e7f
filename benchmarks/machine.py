"""Where figures come from, in words, and the page that they go to."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def machine(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    amx = ", AMX" if any("amx_bf16" in line for line in lines if line.startswith("flags")) else ""
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}{amx}, {torch.get_num_threads()} threads"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
