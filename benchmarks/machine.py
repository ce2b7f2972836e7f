"""Where figures come from, in words, and the page that they go to."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from ostinato.report.tables import to_markdown

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


def driver(device: torch.device) -> str:
    """The version of a GPU's driver."""
    if device.type != "cuda":
        return "none"
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        said = []
    return said[0] if said else "unknown, since nvidia-smi does not tell"


def memory(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are figures."""
    return to_markdown(head, rows).removesuffix("\n")
