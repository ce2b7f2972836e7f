"""A learned model as a folder: ``artifact.json``, and beside it the files that it names by their hash.

A new model is put in the place of an old one by one rename, of ``artifact.json``. Its files have names of their own, so
that a reader sees the old model or the new one, whenever it looks.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.files import read_json, read_regular, read_sealed, sealed, sync, write_new, write_text
from ostinato.records import ARTIFACT_FORMAT, ArtifactRecord, StoredFile, check_format, parse

ABOUT = "artifact.json"

_PARTS = {"learned": ".safetensors", "used": ".npy", "method": ".py"}
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
    contents = {"learned": pack(learned), "used": array.getvalue(), "method": text}
    _publish(folder, about, contents)


def _publish(folder: Path, about: dict[str, Any], contents: dict[str, bytes | None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, dict[str, Any] | None] = {}
    for kind, data in contents.items():
        key = "method_text" if kind == "method" else kind
        stored[key] = None if data is None else _put(folder, kind, data)
    record = {"format": ARTIFACT_FORMAT} | about | stored
    parse(ArtifactRecord, record, folder / ABOUT)
    sync(folder)  # the names of the files, before the one that names them
    write_text(folder / ABOUT, sealed(record))
    kept = {ABOUT, *(one["file"] for one in stored.values() if one is not None)}
    for path in folder.iterdir():
        if _is_part(path) and path.name not in kept:
            path.unlink(missing_ok=True)


def _put(folder: Path, kind: str, data: bytes) -> dict[str, Any]:
    """Write a file under a name with its hash."""
    draft = folder / f"{kind}-new{_PARTS[kind]}.part"
    draft.unlink(missing_ok=True)
    digest = write_new(draft, data)
    name = f"{kind}-{digest[:16]}{_PARTS[kind]}"
    draft.replace(folder / name)
    return {"file": name, "sha256": digest, "bytes": len(data)}


def _is_part(path: Path) -> bool:
    """Whether a file is one of a model's, or a draft of one."""
    name = path.name.removesuffix(".part")
    return name == ABOUT or any(name.startswith(f"{kind}-") and name.endswith(end) for kind, end in _PARTS.items())


def read(folder: Path) -> Artifact:
    """Read a model, and check every file against its hash.

    Raises:
        DataError: if there is none, it is damaged, incomplete or of another version.
    """
    about, contents = _read(folder)
    where = f"{folder}: {about.learned.file}"
    try:
        learned = load(contents["learned"] or b"")
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where} holds no tensors ({error}). Restore the artifact.") from None
    try:
        used = np.load(io.BytesIO(contents["used"] or b""), allow_pickle=False)
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
    check_format(read_json(path), ARTIFACT_FORMAT, path, _OLDER)
    about = parse(ArtifactRecord, read_sealed(path), path)
    if sum(about.task_sizes) != len(about.class_names) or not about.class_names:
        raise DataError(f"{path}: task_sizes must add up to the {len(about.class_names)} classes. Restore the file.")
    return about


def copy(source: Path, target: Path) -> None:
    """Copy a model, every byte of it checked, in the place of one that is there."""
    about, contents = _read(source)
    fields = about.model_dump(exclude={"format", "learned", "used", "method_text"})
    _publish(target, fields, contents)


def method_text(folder: Path) -> Path | None:
    """The copy of the method's file in a model; None where it is a registered one."""
    stored = read_about(folder).method_text
    return None if stored is None else folder / stored.file


def _read(folder: Path) -> tuple[ArtifactRecord, dict[str, bytes | None]]:
    """A description and the files that belong to it, even while another model takes its place."""
    about = read_about(folder)
    for _ in range(_ATTEMPTS):
        try:
            parts = {"learned": about.learned, "used": about.used, "method": about.method_text}
            return about, {kind: None if one is None else read_stored(folder, one) for kind, one in parts.items()}
        except DataError:
            before, about = about, read_about(folder)
            if about == before:  # nobody replaced it
                raise
    raise DataError(f"{folder} was replaced {_ATTEMPTS} times while it was read. Try again.")


def read_stored(folder: Path, stored: StoredFile) -> bytes:
    """The bytes of a file, if they are the ones that were stored.

    Raises:
        DataError: if the file is missing, or has other bytes.
    """
    data = read_regular(folder / stored.file, stored.bytes)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != stored.bytes or found != stored.sha256:
        raise DataError(
            f"{folder / stored.file} is damaged: its SHA-256 is {found[:12]}..., not {stored.sha256[:12]}... as when "
            "it was written. Restore it from a copy."
        )
    return data


def pack(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as safetensors, from wherever they are, shared storage included."""
    return save({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()})
