"""Folder of a learned model: ``artifact.json`` and the files that it lists with their hashes.

Renaming a new ``artifact.json`` into place replaces a model. File names contain hashes, so that a reader always finds
the complete old or the complete new model.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.files import read_stored, sync, write_new, write_sealed
from ostinato.locking import HOLDER, LOCK, locked
from ostinato.records import ARTIFACT_FORMAT, ArtifactRecord, StoredFile, parse, read_versioned
from ostinato.tensor_files import tensors_of, write_tensors

ABOUT = "artifact.json"

_PARTS = {"learned": ".safetensors", "used": ".npy", "method": ".py"}
_NAMES = re.compile(
    r"artifact\.json(\.part)?|\.lock(\.json(\.part)?)?"
    r"|(learned-([0-9a-f]{16}|new)\.safetensors|used-([0-9a-f]{16}|new)\.npy|method-([0-9a-f]{16}|new)\.py)(\.part)?"
)
"""Names of all files of a model."""
_ATTEMPTS = 20
_OLDER = "Learn the model again, or use the ostinato that saved it."


@dataclass(frozen=True)
class Artifact:
    """A model that was read and verified.

    Attributes:
        about: description of the model.
        learned: learned tensors by name.
        used: fingerprints of samples, see :class:`ostinato.learner.Learner`.
    """

    about: ArtifactRecord
    learned: dict[str, Tensor]
    used: np.ndarray


def exists(folder: Path) -> bool:
    """Tell whether a folder holds a model."""
    return (folder / ABOUT).is_file()


def write(
    folder: Path, about: dict[str, Any], learned: dict[str, Tensor], used: np.ndarray, text: bytes | None
) -> None:
    """Write a model atomically; an earlier model in the folder is replaced.

    Args:
        folder: folder, made if it does not exist.
        about: fields of :class:`ArtifactRecord` except the files.
        learned: tensors on any device.
        used: fingerprints of samples.
        text: text of the method's file; None for a registered method.

    Raises:
        InputError: if the folder holds anything else.
    """
    if folder.exists() and not (folder.is_dir() and (exists(folder) or all(_is_part(p) for p in folder.iterdir()))):
        raise InputError(f"save: {folder} exists and is no saved learner. Choose another folder.")
    array = io.BytesIO()
    np.save(array, used)
    puts: dict[str, Callable[[Path], StoredFile]] = {
        "learned": partial(write_tensors, tensors=learned),
        "used": partial(_write, data=array.getvalue()),
    }
    if text is not None:
        puts["method"] = partial(_write, data=text)
    _publish(folder, about, puts)


def _publish(folder: Path, about: dict[str, Any], puts: Mapping[str, Callable[[Path], StoredFile]]) -> None:
    """Write the files by the function for each kind, then the description, and delete files of an earlier model."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        stored: dict[str, dict[str, Any] | None] = {"method_text": None}
        for kind, put in puts.items():
            draft = folder / f"{kind}-new{_PARTS[kind]}.part"
            draft.unlink(missing_ok=True)
            written = put(draft)
            name = f"{kind}-{written.sha256[:16]}{_PARTS[kind]}"
            draft.replace(folder / name)
            stored["method_text" if kind == "method" else kind] = written.model_dump() | {"file": name}
        record = {"format": ARTIFACT_FORMAT} | about | stored
        parse(ArtifactRecord, record, folder / ABOUT)
        sync(folder)  # file names must be on disk before the description
        write_sealed(folder / ABOUT, record)
        kept = {ABOUT, LOCK, HOLDER, *(file["file"] for file in stored.values() if file is not None)}
        for path in folder.iterdir():
            if _is_part(path) and path.name not in kept:
                path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> StoredFile:
    return StoredFile(file=path.name, sha256=write_new(path, data), bytes=len(data))


def _is_part(path: Path) -> bool:
    """Tell by its name whether a file, or a draft, belongs to a model."""
    return _NAMES.fullmatch(path.name) is not None


def read(folder: Path) -> Artifact:
    """Read a model and verify the hash of every file.

    Raises:
        DataError: if the model is missing, damaged, incomplete or of another version.
    """
    about, contents = _read(folder)
    learned = tensors_of(contents["learned"], folder / about.learned.file)
    try:
        used = np.load(io.BytesIO(contents["used"]), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{folder}: {about.used.file} cannot be read ({error}). Restore the artifact.") from None
    if not isinstance(used, np.ndarray) or used.dtype != np.uint64 or used.ndim != 1:
        raise DataError(f"{folder}: {about.used.file} must hold a list of 64-bit numbers. Restore the artifact.")
    return Artifact(about, learned, used)


def read_about(folder: Path) -> ArtifactRecord:
    """Read the description of a model without its tensors.

    Raises:
        DataError: as :func:`read`.
    """
    path = folder / ABOUT
    if not exists(folder):
        raise DataError(f"{folder} is no saved learner: it has no {ABOUT}.")
    about = read_versioned(ArtifactRecord, path, ARTIFACT_FORMAT, _OLDER)
    if sum(about.task_sizes) != len(about.class_names) or not about.class_names:
        raise DataError(f"{path}: task_sizes must add up to the {len(about.class_names)} classes. Restore the file.")
    if about.samples is not None and len(about.samples) != len(about.class_names):
        raise DataError(f"{path}: samples must be {len(about.class_names)} numbers, one per class. Restore the file.")
    return about


def copy(source: Path, target: Path) -> None:
    """Copy and verify a model; an earlier model in the target is replaced."""
    about, contents = _read(source)
    fields = about.model_dump(exclude={"format", "learned", "used", "method_text"})
    _publish(target, fields, {kind: partial(_write, data=data) for kind, data in contents.items()})


def method_text(folder: Path) -> Path | None:
    """Path of the method's file in a model; None for a registered method."""
    stored = read_about(folder).method_text
    return None if stored is None else folder / stored.file


def _read(folder: Path) -> tuple[ArtifactRecord, dict[str, bytes]]:
    """Read a description and its files; start again if another process replaces the model meanwhile."""
    about = read_about(folder)
    for _ in range(_ATTEMPTS):
        try:
            parts = {"learned": about.learned, "used": about.used}
            parts |= {"method": about.method_text} if about.method_text is not None else {}
            return about, {k: read_stored(folder, part.file, part.bytes, part.sha256) for k, part in parts.items()}
        except DataError:
            before, about = about, read_about(folder)
            if about == before:  # damaged, not replaced
                raise
    raise DataError(f"{folder} was replaced {_ATTEMPTS} times while it was read. Try again.")
