"""Checkpoints: plain tensors and JSON, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ostinato.errors import DataError


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        learned: the method's learned tensors.
        optimizer: the optimiser's tensors, empty between stages.
        progress: everything else, as JSON.
    """

    learned: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run, of which the newest two are kept.

    Args:
        root: their folder; made when the first one is saved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _numbered(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return sorted(p for p in self.root.iterdir() if p.is_dir() and p.name.isdigit())

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint beside the others and drop all but the newest two.

        The folder gets its name only when every byte is on disk, so that a kill leaves no half checkpoint.
        """
        existing = self._numbered()
        target = self.root / f"{int(existing[-1].name) + 1 if existing else 0:06d}"
        draft = self.root / "unfinished"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, tensors in (("learned", checkpoint.learned), ("optimizer", checkpoint.optimizer)):
            save_tensors(tensors, draft / f"{name}.safetensors")
        (draft / "progress.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
        for file in draft.iterdir():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
        draft.rename(target)
        _sync_directory(self.root)
        for old in existing[:-1]:
            shutil.rmtree(old)
        return target

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None when there is none.

        Raises:
            DataError: if there are checkpoints and none can be read.
        """
        problems = []
        for path in reversed(self._numbered()):
            try:
                return Checkpoint(
                    learned=load_file(path / "learned.safetensors"),
                    optimizer=load_file(path / "optimizer.safetensors"),
                    progress=json.loads((path / "progress.json").read_text(encoding="utf-8")),
                )
            except (OSError, ValueError, SafetensorError) as error:
                problems.append(f"{path}: {error}")
        if problems:
            raise DataError("No checkpoint can be read: " + "; ".join(problems))
        return None


def _sync_directory(path: Path) -> None:
    """Put a rename on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, from wherever they are, shared storage included."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
