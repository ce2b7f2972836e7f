"""Progress of a run, and peak memory."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Progress:
    """Progress of a run; checkpoints store it as :class:`ostinato.records.ProgressRecord`, which documents it."""

    task: int = 0
    phase: str = "begin"
    stage: int = 0
    step: int = 0
    seen: dict[str, Any] | None = None
    matrix: dict[str, Any] | None = None
    task_incremental: dict[str, Any] | None = None
    batch_matrix: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    events: int = 0
    trainable: int = 0
    train_seconds: float = 0.0
    train_images: int = 0
    eval_seconds: float = 0.0
    last_eval_seconds: float = 0.0
    batch_last_eval_seconds: float = 0.0
    eval_images: int = 0
    peak_memory: int = 0
    warnings: list[str] = field(default_factory=list)


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: of the GPU if one is used, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage starts at the size of the parent process
        high = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if high is not None:
            return int(high.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
