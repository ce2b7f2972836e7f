"""Files on disk: written whole or not at all, told apart by their hash, and read within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ostinato.errors import DataError
from ostinato.paths import open_file

MAX_JSON = 2**28
"""Bytes of the largest JSON file that is read."""

_DRAFT = ".part"
_SEAL = "sha256"
_SMALL = 2**20


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file whole or not at all, and to the disk.

    A draft beside it takes its name by one rename. A link in the draft's or the file's place is replaced, not followed.

    Returns:
        SHA-256 of the data, in hexadecimal; computed while the disk writes.
    """
    draft = path.with_name(path.name + _DRAFT)
    draft.unlink(missing_ok=True)
    digest = write_new(draft, data)
    draft.replace(path)
    sync(path.parent)
    return digest


def write_new(path: Path, *parts: bytes | memoryview) -> str:
    """Write a file that must not exist yet to the disk; a kill may leave a part of it.

    Args:
        path: of the file.
        parts: its content, one after another.

    Returns:
        SHA-256 of all parts, in hexadecimal.
    """
    digest = hashlib.sha256()

    def put() -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666), "wb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())

    def add() -> None:
        for part in parts:
            digest.update(part)

    if sum(len(part) for part in parts) < _SMALL:
        put()
        add()
    else:  # both let other threads run
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(put)
            add()
            written.result()
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 as :func:`write_bytes` does."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as :func:`write_bytes` does.

    Raises:
        ValueError: if it holds NaN or an infinity, which JSON has no words for.
    """
    write_text(path, _canonical(value))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write JSON that :func:`read_sealed` finds changed if a bit of it changes; the hash stands in it as ``sha256``."""
    write_text(path, sealed(value))


def sealed(value: dict[str, Any]) -> str:
    """JSON text with its own hash in it."""
    value = {key: one for key, one in value.items() if key != _SEAL}
    digest = hashlib.sha256(_canonical(value).encode()).hexdigest()
    return _canonical({_SEAL: digest} | value)


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_sealed(path: Path, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Read what :func:`write_sealed` wrote, without the hash.

    Args:
        path: of the file.
        check: sees the content before its hash is looked at, and may refuse it: another version has no such hash.

    Raises:
        DataError: if the file is missing, no JSON, or changed since it was written.
    """
    data = read_regular(path, MAX_JSON)
    value = _json(path, data)
    if check is not None:
        check(value)
    # Every byte counts: the text must be the one that its content is written as, and the hash that of the content.
    try:
        whole = data == sealed(value).encode()
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise DataError(
            f"{path} is damaged or was edited: it does not have the SHA-256 that it holds. Restore it from a copy."
        )
    return {key: one for key, one in value.items() if key != _SEAL}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is missing, damaged or holds something else.
    """
    return _json(path, read_regular(path, MAX_JSON))


def _json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be JSON, but cannot be read: {error}. Restore it from a copy.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} must hold a JSON object, not {type(value).__name__}.")
    return value


def read_regular(path: Path, most: int) -> bytes:
    """Read a regular file, never a pipe or a device.

    Args:
        path: of the file, or of a link to it.
        most: bytes.

    Raises:
        DataError: if it is missing, of another kind, larger, or cannot be read.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DataError(f"{path} has {size} bytes; at most {most} are read.")
            return file.read(most)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def read_stored(folder: Path, name: str, size: int, sha256: str) -> bytes:
    """The bytes of a file, if they are the ones that were stored.

    Raises:
        DataError: if the file is missing, or has other bytes.
    """
    data = read_regular(folder / name, size)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != size or found != sha256:
        raise DataError(
            f"{folder / name} is damaged: its SHA-256 is {found[:12]}..., not {sha256[:12]}... as when it was written. "
            "Restore it from a copy."
        )
    return data


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Put a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fresh_folder(path: Path) -> Path:
    """An empty folder in the place of whatever has the name."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
