"""One process at a time changes a run."""

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
    """Hold a folder; the lock goes with the process, however that ends.

    Args:
        folder: exists.

    Raises:
        InputError: if another process holds it, naming that.
    """
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise InputError(f"{folder} is in use by {_holder(folder)}. Wait until it ends, or stop it.") from None
    except OSError as error:
        raise DataError(f"{folder}: no lock can be made in it ({error.strerror}).") from None
    try:
        write_json(folder / HOLDER, {"host": platform.node(), "process": os.getpid(), "since": _now()})
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _holder(folder: Path) -> str:
    try:
        known = read_json(folder / HOLDER)
    except DataError:
        return "another process"
    shown = {key: json.dumps(known.get(key)) for key in ("process", "host", "since")}
    return f"process {shown['process']} on {shown['host']} since {shown['since']}"
