"""Checkpoints of tensors and JSON, written atomically and verified when read."""

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
_OLDER = "Finish the run with the ostinato that began it, or start a new run."


@dataclass(frozen=True)
class Checkpoint:
    """State of a run.

    Attributes:
        learned: learned tensors of the method.
        optimizer: tensors of the optimiser, empty between stages.
        progress: the rest as JSON, see :class:`ostinato.records.ProgressRecord`.
    """

    learned: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    progress: dict[str, Any]


@dataclass(frozen=True)
class _Written:
    """A tensor that was written.

    Attributes:
        tensor: the tensor; the reference keeps its address from being reused.
        version: number of in-place changes when it was written.
        file: name of the file with its content.
    """

    tensor: Tensor
    version: int
    file: str


class Checkpoints:
    """Store of the newest two checkpoints of a run.

    Tensors of finished tasks never change. Each is written once, and later checkpoints link to its file. The cost of a
    checkpoint is what changed since the previous one, whatever the number of tasks.

    Args:
        root: folder of the checkpoints; made by the first save.
        run_id: identifier of the run; checkpoints of other runs are refused.

    Attributes:
        damaged: errors of newer checkpoints that the last call of :meth:`latest` skipped.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root, self.run_id = root, run_id
        self.damaged: list[str] = []
        self._unreadable: list[Path] = []
        self._written: dict[str, _Written] = {}
        self._files: dict[str, StoredFile] = {}

    def any(self) -> bool:
        """Tell whether there is a complete checkpoint."""
        return bool(_numbered(self.root))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint and delete all but the newest two.

        The folder is renamed once every byte is on disk, so that a kill leaves no partial checkpoint.
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
            "learned": {name: tensor.file for name, tensor in written.items()},
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
        """Write changed tensors into a new file, and link to the files with the others."""
        same = {name: file for name, t in tensors.items() if before and (file := self._unchanged(name, t, before))}
        changed = {name: t for name, t in tensors.items() if name not in same}
        fresh = write_tensors(draft / f"learned-{number}.safetensors", changed)
        files = {fresh.file: fresh}
        for file in sorted(set(same.values())):
            source = (before or draft) / file
            try:
                os.link(source, draft / file)
            except OSError:  # no links on this file system
                write_new(draft / file, source.read_bytes())
            files[file] = self._files[file]
        places = {name: same.get(name, fresh.file) for name in tensors}
        return {name: _Written(t, _version(t), places[name]) for name, t in tensors.items()}, files

    def _unchanged(self, name: str, tensor: Tensor, before: Path) -> str | None:
        """Name the file of the previous checkpoint that holds this tensor; None if the tensor changed."""
        written = self._written.get(name)
        same = (
            written is not None
            and written.version >= 0
            and written.tensor.data_ptr() == tensor.data_ptr()
            and written.tensor.shape == tensor.shape
            and _version(tensor) == written.version
            and (before / written.file).exists()
        )
        return written.file if written is not None and same else None

    def latest(self) -> Checkpoint | None:
        """Read the newest readable checkpoint; None if there are no checkpoints.

        Raises:
            DataError: if there are checkpoints but none can be read.
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
                f"No checkpoint can be read: {' '.join(self.damaged)} To restart from the beginning, delete "
                f"{self.root} and resume."
            )
        return None

    def _read(self, folder: Path) -> Checkpoint:
        path = folder / _ABOUT
        about = read_versioned(CheckpointRecord, path, CHECKPOINT_FORMAT, _OLDER)
        if about.run_id != self.run_id:
            raise DataError(f"{folder} is a checkpoint of another run ({about.run_id[:8]}, not {self.run_id[:8]}).")
        files = {stored.file: read_tensors(folder, stored) for stored in about.files}
        try:
            learned = {name: files[file][name] for name, file in about.learned.items()}
            return Checkpoint(learned, files[_OPTIMIZER], about.progress.model_dump())
        except KeyError as error:
            raise DataError(f"{folder}: {error.args[0]!r} is missing from its files.") from None


def _numbered(root: Path) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if p.is_dir() and p.name.isdigit())


def _version(tensor: Tensor) -> int:
    """Number of in-place changes of a tensor; -1 for an inference tensor, which has no counter."""
    return -1 if tensor.is_inference() else tensor._version
