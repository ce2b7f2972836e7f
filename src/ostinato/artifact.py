"""A learned model as a folder: ``artifact.json``, and beside it the files that it names by their hash.

A new model is put in the place of an old one by one rename, of ``artifact.json``. Its files have names of their own, so
that a reader sees the old model or the new one, whenever it looks.
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
"""Names of all files that are written here."""
_ATTEMPTS = 20
_OLDER = "Learn the model again, or use the ostinato that saved it."


@dataclass(frozen=True)
class Artifact:
    """A model as it was read, every byte of it checked.

    Attributes:
        about: what it is.
        learned: tensors by name.
        used: fingerprints of samples, see :class:`ostinato.learner.Learner`.
    """

    about: ArtifactRecord
    learned: dict[str, Tensor]
    used: np.ndarray


def exists(folder: Path) -> bool:
    """Whether there is a model in a folder."""
    return (folder / ABOUT).is_file()


def write(
    folder: Path, about: dict[str, Any], learned: dict[str, Tensor], used: np.ndarray, text: bytes | None
) -> None:
    """Write a model, whole or not at all; one that is there is replaced.

    Args:
        folder: made if it does not exist.
        about: fields of :class:`ArtifactRecord` but the files.
        learned: tensors on any device.
        used: fingerprints.
        text: of the method's file, where it is no registered one.

    Raises:
        InputError: if there is something else in the folder.
    """
    if folder.exists() and not (folder.is_dir() and (exists(folder) or all(_is_part(p) for p in folder.iterdir()))):
        raise InputError(f"save: {folder} exists and is no saved learner; choose another folder.")
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
    """Write the files, each by the function for its kind, then the description that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        _put_all(folder, about, puts)


def _put_all(folder: Path, about: dict[str, Any], puts: Mapping[str, Callable[[Path], StoredFile]]) -> None:
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
    sync(folder)  # the names of the files, before the one that names them
    write_sealed(folder / ABOUT, record)
    kept = {ABOUT, LOCK, HOLDER, *(one["file"] for one in stored.values() if one is not None)}
    for path in folder.iterdir():
        if _is_part(path) and path.name not in kept:
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> StoredFile:
    return StoredFile(file=path.name, sha256=write_new(path, data), bytes=len(data))


def _is_part(path: Path) -> bool:
    """Whether a file is one of a model's, or a draft of one, by a name that nobody else gives."""
    return _NAMES.fullmatch(path.name) is not None


def read(folder: Path) -> Artifact:
    """Read a model, and check every file against its hash.

    Raises:
        DataError: if there is none, it is damaged, incomplete or of another version.
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
    """What a model is, without its tensors.

    Raises:
        DataError: as :func:`read`.
    """
    path = folder / ABOUT
    if not exists(folder):
        raise DataError(f"{folder} is no saved learner: it has no {ABOUT}.")
    about = read_versioned(ArtifactRecord, path, ARTIFACT_FORMAT, _OLDER)
    if sum(about.task_sizes) != len(about.class_names) or not about.class_names:
        raise DataError(f"{path}: task_sizes must add up to the {len(about.class_names)} classes. Restore the file.")
    return about


def copy(source: Path, target: Path) -> None:
    """Copy a model, every byte of it checked, in the place of one that is there."""
    about, contents = _read(source)
    fields = about.model_dump(exclude={"format", "learned", "used", "method_text"})
    _publish(target, fields, {kind: partial(_write, data=data) for kind, data in contents.items()})


def method_text(folder: Path) -> Path | None:
    """The copy of the method's file in a model; None where it is a registered one."""
    stored = read_about(folder).method_text
    return None if stored is None else folder / stored.file


def _read(folder: Path) -> tuple[ArtifactRecord, dict[str, bytes]]:
    """A description and the files that belong to it, even while another model takes its place."""
    about = read_about(folder)
    for _ in range(_ATTEMPTS):
        try:
            parts = {"learned": about.learned, "used": about.used}
            parts |= {"method": about.method_text} if about.method_text is not None else {}
            return about, {k: read_stored(folder, one.file, one.bytes, one.sha256) for k, one in parts.items()}
        except DataError:
            before, about = about, read_about(folder)
            if about == before:  # nobody replaced it
                raise
    raise DataError(f"{folder} was replaced {_ATTEMPTS} times while it was read. Try again.")
