"""Where a run stands, and the memory it takes."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Progress:
    """Where a run stands; in every checkpoint as :class:`ostinato.records.ProgressRecord`, which explains it."""

    task: int = 0
    phase: str = "begin"
    stage: int = 0
    step: int = 0
    seen: dict[str, Any] | None = None
    matrix: dict[str, Any] | None = None
    task_incremental: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    trainable: int = 0
    train_seconds: float = 0.0
    train_images: int = 0
    eval_seconds: float = 0.0
    eval_images: int = 0
    peak_memory: int = 0
    warnings: list[str] = field(default_factory=list)


def peak_memory(device: torch.device) -> int:
    """Largest memory of this process so far, in bytes: on the GPU where it is used, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # the counter of getrusage begins at the size of the process that started this one
        high = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if high is not None:
            return int(high.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
