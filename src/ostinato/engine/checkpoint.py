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

    A finished task's tensors never change again. Each is written once, and later checkpoints link to the file that
    holds it, so that a checkpoint costs what changed since the one before, however many tasks were learned.

    Args:
        root: their folder; made when the first one is saved.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        # By name: the tensor as it was written, its version then, and the file. Holding on to the tensor keeps its
        # address from being used again.
        self._written: dict[str, tuple[Tensor, int, str]] = {}

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
        written = self._write_learned(checkpoint.learned, draft, existing[-1] if existing else None, target.name)
        save_tensors(checkpoint.optimizer, draft / "optimizer.safetensors")
        (draft / "progress.json").write_text(json.dumps(checkpoint.progress), encoding="utf-8")
        put_folder(draft, target)
        self._written = written
        for old in existing[:-1]:
            shutil.rmtree(old)
        return target

    def _write_learned(
        self, tensors: dict[str, Tensor], draft: Path, before: Path | None, number: str
    ) -> dict[str, tuple[Tensor, int, str]]:
        """Write what changed into a file of its own, link to the files with the rest, and say where everything is."""
        same = {name: file for name, t in tensors.items() if before and (file := self._unchanged(name, t, before))}
        fresh = f"learned-{number}.safetensors"
        save_tensors({name: t for name, t in tensors.items() if name not in same}, draft / fresh)
        for file in sorted(set(same.values())):
            source = (before or draft) / file
            try:
                os.link(source, draft / file)
            except OSError:  # a file system without links
                shutil.copy2(source, draft / file)
        places = {name: same.get(name, fresh) for name in tensors}
        (draft / "learned.json").write_text(json.dumps(places), encoding="utf-8")
        return {name: (t, _version(t), places[name]) for name, t in tensors.items()}

    def _unchanged(self, name: str, tensor: Tensor, before: Path) -> str | None:
        """The file of the checkpoint before that holds this very tensor."""
        if name not in self._written:
            return None
        old, version, file = self._written[name]
        same = (
            version >= 0
            and old.data_ptr() == tensor.data_ptr()
            and old.shape == tensor.shape
            and _version(tensor) == version
            and (before / file).exists()
        )
        return file if same else None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None when there is none.

        Raises:
            DataError: if there are checkpoints and none can be read.
        """
        problems = []
        for path in reversed(self._numbered()):
            try:
                places: dict[str, str] = json.loads((path / "learned.json").read_text(encoding="utf-8"))
                files = {file: load_file(path / file) for file in sorted(set(places.values()))}
                return Checkpoint(
                    learned={name: files[file][name] for name, file in places.items()},
                    optimizer=load_file(path / "optimizer.safetensors"),
                    progress=json.loads((path / "progress.json").read_text(encoding="utf-8")),
                )
            except (OSError, ValueError, KeyError, SafetensorError) as error:
                problems.append(f"{path}: {error}")
        if problems:
            raise DataError("No checkpoint can be read: " + "; ".join(problems))
        return None


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; -1 where nobody counts."""
    return -1 if tensor.is_inference() else tensor._version


def new_draft(target: Path) -> Path:
    """An empty folder in which a folder is written that :func:`put_folder` then gives its name."""
    draft = _beside(target, "draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft


def put_folder(draft: Path, target: Path) -> None:
    """Give a folder of files its name once every byte is on disk; what has that name is replaced.

    A kill leaves the draft, or for the blink between two renames what is replaced under another name.
    """
    for file in draft.iterdir():
        _sync(file)
    _sync(draft)
    old = _beside(target, "old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    draft.rename(target)
    _sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path, what: str) -> Path:
    """A name that nobody else gives."""
    return target.with_name(f".{target.name}.ostinato-{what}")


def _sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, from wherever they are, shared storage included."""
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
