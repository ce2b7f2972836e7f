"""Crash reports: a file for maintainers in place of a traceback on the terminal."""

from __future__ import annotations

import os

EXIT_CODE = 70
"""Exit code of a crash."""

_PACKAGES = ("ostinato", "torch", "torchvision", "timm", "transformers", "numpy", "pillow", "pyarrow", "safetensors")


def report(error: BaseException, words: list[str]) -> str:
    """Write a report about an unexpected error of a command.

    Returns:
        A message for the user with the error, its place and the path of the report.
    """
    import platform  # imported here, since most commands do not crash
    import tempfile
    import traceback
    from datetime import UTC, datetime

    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({frame[0].filename}, line {frame[0].lineno}, in {frame[0].name})" if frame else ""
    summary = f"{type(error).__name__}: {error}{place}"
    lines = [
        f"ostinato {_version('ostinato')}, {datetime.now(UTC).isoformat(timespec='seconds')}",
        f"command: {words!r}",
        f"python {platform.python_version()}, {platform.platform()}, {platform.machine()}",
        ", ".join(f"{name} {_version(name)}" for name in _PACKAGES),
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        handle, path = tempfile.mkstemp(prefix="ostinato-crash-", suffix=".txt", text=True)
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write("\n".join(lines))
    except OSError as failure:
        return f"{summary}. This is a defect, and no report of it could be written ({failure.strerror})."
    return (
        f"{summary}. This is a defect of ostinato, or of a method in a file. A report is in {path}; please send it "
        "with an issue (it names files of this machine)."
    )


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
