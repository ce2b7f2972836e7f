"""Description of the machine, and the page of figures."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from ostinato.report.tables import to_markdown

LIMITED = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
"""Limit on the instructions of CPU products, to imitate a machine with fewer."""

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def machine(device: torch.device) -> str:
    """Describe the device."""
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
    """Version of a GPU's driver."""
    if device.type != "cuda":
        return "none"
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        said = []
    return said[0] if said else "unknown, since nvidia-smi does not tell"


def memory(device: torch.device) -> int:
    """Memory of the device in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table with text in the first column and figures in the others."""
    return to_markdown(head, rows).removesuffix("\n")
