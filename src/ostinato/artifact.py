"""Folder of a learned model: ``artifact.json`` and the files that it lists with their hashes.

Renaming a new ``artifact.json`` into place replaces a model. File names contain hashes, so that a reader always finds
the complete old or the complete new model.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.files import check_stored, fresh_folder, read_stored, sha256_of, sync, write_new, write_sealed
from ostinato.locking import HOLDER, LOCK, locked
from ostinato.records import (
    ARTIFACT_FORMAT,
    ArtifactRecord,
    BundledFile,
    BundleRecord,
    StoredFile,
    parse,
    read_versioned,
)
from ostinato.tensor_files import tensors_of, write_tensors

ABOUT = "artifact.json"

_PARTS = {"learned": ".safetensors", "used": ".npy", "method": ".py"}
_NAMES = re.compile(
    r"artifact\.json(\.part)?|\.lock(\.json(\.part)?)?"
    r"|backbone-([0-9a-f]{16}|new\.part)"
    r"|(learned-([0-9a-f]{16}|new)\.safetensors|used-([0-9a-f]{16}|new)\.npy|method-([0-9a-f]{16}|new)\.py)(\.part)?"
)
"""Names of all files of a model."""
_BUNDLE = re.compile(r"backbone-[0-9a-f]{16}")
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


@dataclass(frozen=True)
class Bundle:
    """Weights of a backbone to write into a model.

    Attributes:
        weights: name of the file to load; None if the folder as a whole is loaded.
        files: each file to copy, or a function that writes it, by its name in the folder.
        check: raises an error unless the written file or folder loads as the same weights.
    """

    weights: str | None
    files: Mapping[str, Path | Callable[[Path], None]]
    check: Callable[[Path], None]


def exists(folder: Path) -> bool:
    """Tell whether a folder holds a model."""
    return (folder / ABOUT).is_file()


def write(
    folder: Path,
    about: dict[str, Any],
    learned: dict[str, Tensor],
    used: np.ndarray,
    text: bytes | None,
    bundle: Bundle | None = None,
) -> None:
    """Write a model atomically; an earlier model in the folder is replaced.

    Args:
        folder: folder, made if it does not exist.
        about: fields of :class:`ArtifactRecord` except the files.
        learned: tensors on any device.
        used: fingerprints of samples.
        text: text of the method's file; None for a registered method.
        bundle: weights to hold.

    Raises:
        InputError: if the folder holds anything else.
    """
    _check_free(folder)
    array = io.BytesIO()
    np.save(array, used)
    puts: dict[str, Callable[[Path], StoredFile]] = {
        "learned": partial(write_tensors, tensors=learned),
        "used": partial(_write, data=array.getvalue()),
    }
    if text is not None:
        puts["method"] = partial(_write, data=text)
    _publish(folder, about, puts, bundle)


def _check_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and (exists(folder) or all(_is_part(p) for p in folder.iterdir()))):
        raise InputError(f"save: {folder} exists and is no saved learner. Choose another folder.")


def _publish(
    folder: Path, about: dict[str, Any], puts: Mapping[str, Callable[[Path], StoredFile]], bundle: Bundle | None
) -> None:
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
        held = None if bundle is None else _put_bundle(folder, bundle)
        stored["bundle"] = None if held is None else held.model_dump()
        record = {"format": ARTIFACT_FORMAT} | about | stored
        parse(ArtifactRecord, record, folder / ABOUT)
        sync(folder)  # file names must be on disk before the description
        write_sealed(folder / ABOUT, record)
        kept = {ABOUT, LOCK, HOLDER, *(part.get("file", part.get("folder")) for part in stored.values() if part)}
        for path in folder.iterdir():
            if _is_part(path) and path.name not in kept:
                _delete(path)


def _put_bundle(folder: Path, bundle: Bundle) -> BundleRecord:
    """Write a bundle; an equal one that is there stays."""
    draft = fresh_folder(folder / "backbone-new.part")
    try:
        for name, source in bundle.files.items():
            path = draft / name
            path.parent.mkdir(exist_ok=True)
            if callable(source):
                source(path)
            else:
                _link_or_copy(source, path)
            sync(path)
            sync(path.parent)
        bundle.check(draft if bundle.weights is None else draft / bundle.weights)
    except BaseException:  # it may be large
        shutil.rmtree(draft, ignore_errors=True)
        raise
    files = _files_in(draft)
    content = "".join(f"{file.file} {file.sha256}\n" for file in files)
    target = folder / f"backbone-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if target.is_dir() and not target.is_symlink() and _files_in(target) == files:
        shutil.rmtree(draft)
    else:
        if target.exists() or target.is_symlink():
            _delete(target)
        draft.replace(target)
    return BundleRecord(folder=target.name, weights=bundle.weights, files=files)


def _files_in(folder: Path) -> list[BundledFile]:
    """Name, hash and size of each file below a folder."""
    return [
        BundledFile(file=name, sha256=sha256_of(folder / name), bytes=(folder / name).stat().st_size)
        for name in _names_in(folder)
    ]


def _names_in(folder: Path) -> list[str]:
    """Names of all files and links below a folder."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _link_or_copy(source: Path, path: Path) -> None:
    """Link to a file of another bundle, which never changes; copy any other file."""
    if _BUNDLE.fullmatch(source.parent.name) and not source.is_symlink():  # as in the hub's cache
        try:
            os.link(source, path)
        except OSError:  # no links on this file system, or between two
            shutil.copyfile(source, path)
    else:
        shutil.copyfile(source, path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
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


def copy(
    source: Path,
    target: Path,
    *,
    bundle: Bundle | None = None,
    sizes: dict[str, Any] | None = None,
    paths: bool = True,
) -> None:
    """Copy and verify a model; an earlier model in the target is replaced.

    Args:
        source: folder of the model.
        target: folder of the copy.
        bundle: weights for the copy to hold; None for those that the model holds.
        sizes: of the image encoder in the bundle, for a model that does not record them.
        paths: record the full paths of the weights and of the method's file; else their names, without the folders of
            this machine.

    Raises:
        DataError: as :func:`read`.
        InputError: if the target holds anything else.
    """
    about, contents = _read(source)
    _check_free(target)
    fields = about.model_dump(exclude={"format", "learned", "used", "method_text", "bundle"})
    if bundle is None and about.bundle is not None:
        bundle = _bundle_of(source, about.bundle)
    if sizes is not None:
        fields["backbone"]["sizes"] = sizes
    if not paths:
        for part, key in ((fields["backbone"], "weights"), (fields["method_file"], "path")):
            if part is not None and part[key] is not None:
                part[key] = Path(part[key]).name
    _publish(target, fields, {kind: partial(_write, data=data) for kind, data in contents.items()}, bundle)


def _bundle_of(folder: Path, held: BundleRecord) -> Bundle:
    """The bundle of a model, to write it again; it was checked when it was written."""
    files = {file.file: folder / held.folder / file.file for file in held.files}
    return Bundle(held.weights, files, lambda _: None)


def bundled_weights(folder: Path, about: ArtifactRecord) -> Path | None:
    """Path of the backbone's weights in a model, a file or a folder; None if it holds none."""
    if about.bundle is None:
        return None
    held = folder / about.bundle.folder
    return held if about.bundle.weights is None else held / about.bundle.weights


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
            read = {k: read_stored(folder, part.file, part.bytes, part.sha256) for k, part in parts.items()}
            if about.bundle is not None:
                _check_bundle(folder / about.bundle.folder, about.bundle)
            return about, read
        except DataError:
            before, about = about, read_about(folder)
            if about == before:  # damaged, not replaced
                raise
    raise DataError(f"{folder} was replaced {_ATTEMPTS} times while it was read. Try again.")


def _check_bundle(folder: Path, held: BundleRecord) -> None:
    """Verify the hash of each file of a bundle; a further file could change what the others mean."""
    for file in held.files:
        check_stored(folder / file.file, file.sha256)
    if more := sorted(set(_names_in(folder)) - {file.file for file in held.files}):
        raise DataError(f"{folder} must hold the files of the bundle only, but has {more[0]} too. Delete it.")
