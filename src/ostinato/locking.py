"""Locks of folders: one process at a time changes a run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ostinato.errors import DataError, InputError
from ostinato.files import read_json, write_json

LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an existing folder; the lock ends with the process.

    Raises:
        InputError: if another process holds it, naming the process.
        DataError: if the folder cannot be locked.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder} is in use by {_holder(folder)}. Wait until it ends, or stop it.") from None
    except OSError as error:
        raise DataError(f"{folder} cannot be locked ({error.strerror}).") from None
    try:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / HOLDER, {"host": platform.node(), "process": os.getpid(), "since": now})
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        known = read_json(folder / HOLDER)
    except DataError:
        return "another process"
    shown = {key: json.dumps(known.get(key)) for key in ("process", "host", "since")}
    return f"process {shown['process']} on {shown['host']} since {shown['since']}"
