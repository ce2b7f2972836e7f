"""Files: atomic writes, hashes and bounded reads."""

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
"""Largest JSON file to read, in bytes."""

_DRAFT = ".part"
_SEAL = "sha256"
_SMALL = 2**20


def write_bytes(path: Path, data: bytes) -> str:
    """Write a file atomically: write a draft, sync it to disk, and rename it. Links are replaced, not followed.

    Returns:
        SHA-256 of the data in hexadecimal.
    """
    draft = path.with_name(path.name + _DRAFT)
    draft.unlink(missing_ok=True)
    digest = write_new(draft, data)
    draft.replace(path)
    sync(path.parent)
    return digest


def write_new(path: Path, *parts: bytes | memoryview) -> str:
    """Write parts into a new file and sync it to disk; a kill may leave an incomplete file.

    Returns:
        SHA-256 of all parts in hexadecimal, computed during the write.
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
    else:  # both release the interpreter lock
        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(put)
            add()
            written.result()
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically."""
    write_bytes(path, text.encode(errors="surrogateescape"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON atomically.

    Raises:
        ValueError: if it holds NaN or infinity.
    """
    write_text(path, canonical(value))


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with its hash as ``sha256``, which :func:`read_sealed` verifies."""
    write_text(path, sealed(value))


def sealed(value: dict[str, Any]) -> str:
    """Format JSON with its hash as ``sha256``."""
    value = _unsealed(value)
    digest = hashlib.sha256(canonical(value).encode()).hexdigest()
    return canonical({_SEAL: digest} | value)


def _unsealed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: content for key, content in value.items() if key != _SEAL}


def canonical(value: dict[str, Any]) -> str:
    """Format JSON: the same value, the same text."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def read_sealed(path: Path, check: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Read and verify a file of :func:`write_sealed`; return its content without the hash.

    Args:
        path: path of the file.
        check: is called before the verification and may raise an error, for versions without a hash.

    Raises:
        DataError: if the file is missing, no JSON, or changed.
    """
    data = read_regular(path, MAX_JSON)
    value = _json(path, data)
    if check is not None:
        check(value)
    # Compare the whole text, so that changes of the formatting are found, too.
    try:
        whole = data == sealed(value).encode()
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise DataError(
            f"{path} is damaged or was edited: its SHA-256 differs from the recorded one. Restore it from a copy."
        )
    return _unsealed(value)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: if the file is missing, damaged or no JSON object.
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
    """Read a regular file, or a link to one, of at most ``most`` bytes.

    Raises:
        DataError: if it is missing, larger, no regular file, or cannot be read.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise DataError(f"{path} must have at most {most} bytes, got {size}.")
            return file.read(most)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None


def read_stored(folder: Path, name: str, size: int, sha256: str) -> bytes:
    """Read a file and verify its size and hash.

    Raises:
        DataError: if the file is missing or changed.
    """
    data = read_regular(folder / name, size)
    found = hashlib.sha256(data).hexdigest()
    if len(data) != size or found != sha256:
        raise _damaged(folder / name, found, sha256)
    return data


def check_stored(path: Path, sha256: str) -> None:
    """Verify the hash of a file of any size without holding it in memory.

    Raises:
        DataError: if the file is missing or changed.
    """
    try:
        with open_file(path) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    if found != sha256:
        raise _damaged(path, found, sha256)


def _damaged(path: Path, found: str, sha256: str) -> DataError:
    return DataError(
        f"{path} is damaged: its SHA-256 is {found[:12]}..., not {sha256[:12]}... as when it was written. "
        "Restore it from a copy."
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fresh_folder(path: Path) -> Path:
    """Make an empty folder, replacing any file or folder of the same name."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
