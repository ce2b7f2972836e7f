"""Checkpoints: plain tensors and JSON, written whole or not at all, and checked byte by byte when they are read."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ostinato.errors import DataError
from ostinato.files import fresh_folder, sealed, sync, write_new
from ostinato.records import CHECKPOINT_FORMAT, CheckpointRecord, StoredFile, read_versioned
from ostinato.tensor_files import read_tensors, write_tensors

_ABOUT, _OPTIMIZER, _DRAFT = "checkpoint.json", "optimizer.safetensors", "unfinished"
_OLDER = "Finish the run with the ostinato that began it, or start it anew."


@dataclass(frozen=True)
class Checkpoint:
    """A moment of a run.

    Attributes:
        learned: the method's learned tensors.
        optimizer: the optimiser's tensors, empty between stages.
        progress: everything else, as JSON; see :class:`ostinato.records.ProgressRecord`.
    """

    learned: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


@dataclass(frozen=True)
class _Written:
    """A tensor as it was written.

    Attributes:
        tensor: itself; holding on to it keeps its address from being used again.
        version: how often it had been changed in place.
        file: that holds it.
    """

    tensor: Tensor
    version: int
    file: str


class Checkpoints:
    """The checkpoints of a run, of which the newest two are kept.

    A finished task's tensors never change again. Each is written once, and later checkpoints link to the file that
    holds it, so that a checkpoint costs what changed since the one before, however many tasks were learned.

    Args:
        root: their folder; made when the first one is saved.
        run_id: of the run; checkpoints of another one are refused.

    Attributes:
        damaged: after :meth:`latest`, why newer checkpoints than the one it gave could not be read.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root, self.run_id = root, run_id
        self.damaged: list[str] = []
        self._unreadable: list[Path] = []
        self._written: dict[str, _Written] = {}
        self._files: dict[str, StoredFile] = {}

    def any(self) -> bool:
        """Whether a checkpoint was ever completed."""
        return bool(_numbered(self.root))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint beside the others and drop all but the newest two.

        The folder gets its name only when every byte is on disk, so that a kill leaves no half checkpoint.
        """
        numbered = _numbered(self.root)
        target = self.root / f"{int(numbered[-1].name) + 1 if numbered else 0:06d}"
        existing = [path for path in numbered if path not in self._unreadable]
        draft = fresh_folder(self.root / _DRAFT)
        written, files = self._write_learned(checkpoint.learned, draft, existing[-1] if existing else None, target.name)
        optimizer = write_tensors(draft / _OPTIMIZER, checkpoint.optimizer)
        about = {
            "format": CHECKPOINT_FORMAT,
            "run_id": self.run_id,
            "learned": {name: one.file for name, one in written.items()},
            "files": [file.model_dump() for file in (*files.values(), optimizer)],
            "progress": checkpoint.progress,
        }
        write_new(draft / _ABOUT, sealed(about).encode())
        sync(draft)
        draft.rename(target)
        sync(self.root)
        self._written, self._files = written, files
        for old in (*existing[:-1], *(path for path in numbered if path in self._unreadable)):
            shutil.rmtree(old)
        return target

    def _write_learned(
        self, tensors: dict[str, Tensor], draft: Path, before: Path | None, number: str
    ) -> tuple[dict[str, _Written], dict[str, StoredFile]]:
        """Write what changed into a file of its own, and link to the files with the rest."""
        same = {name: file for name, t in tensors.items() if before and (file := self._unchanged(name, t, before))}
        changed = {name: t for name, t in tensors.items() if name not in same}
        fresh = write_tensors(draft / f"learned-{number}.safetensors", changed)
        files = {fresh.file: fresh}
        for file in sorted(set(same.values())):
            source = (before or draft) / file
            try:
                os.link(source, draft / file)
            except OSError:  # a file system without links
                write_new(draft / file, source.read_bytes())
            files[file] = self._files[file]
        places = {name: same.get(name, fresh.file) for name in tensors}
        return {name: _Written(t, _version(t), places[name]) for name, t in tensors.items()}, files

    def _unchanged(self, name: str, tensor: Tensor, before: Path) -> str | None:
        """The file of the checkpoint before that holds this very tensor."""
        if name not in self._written:
            return None
        was = self._written[name]
        same = (
            was.version >= 0
            and was.tensor.data_ptr() == tensor.data_ptr()
            and was.tensor.shape == tensor.shape
            and _version(tensor) == was.version
            and (before / was.file).exists()
        )
        return was.file if same else None

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, or None when there is none; see ``damaged``.

        Raises:
            DataError: if there are checkpoints and none can be read.
        """
        self.damaged, self._unreadable = [], []
        for path in reversed(_numbered(self.root)):
            try:
                return self._read(path)
            except DataError as error:
                self.damaged.append(str(error))
                self._unreadable.append(path)
        if self.damaged:
            raise DataError(
                f"No checkpoint can be read: {' '.join(self.damaged)} To start the run from its beginning, delete "
                f"{self.root} and resume."
            )
        return None

    def _read(self, folder: Path) -> Checkpoint:
        path = folder / _ABOUT
        about = read_versioned(CheckpointRecord, path, CHECKPOINT_FORMAT, _OLDER)
        if about.run_id != self.run_id:
            raise DataError(f"{folder} is a checkpoint of another run ({about.run_id[:8]}, not {self.run_id[:8]}).")
        files = {one.file: read_tensors(folder, one) for one in about.files}
        try:
            learned = {name: files[file][name] for name, file in about.learned.items()}
            return Checkpoint(learned, files[_OPTIMIZER], about.progress.model_dump())
        except KeyError as error:
            raise DataError(f"{folder}: there is no {error.args[0]!r} in the files that must hold it.") from None


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name.isdigit())


def _version(tensor: Tensor) -> int:
    """How often a tensor was changed in place; -1 where nobody counts."""
    return -1 if tensor.is_inference() else tensor._version
