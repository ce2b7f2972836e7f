"""Reports of crashes: a file with what a maintainer needs, in place of a trace on the terminal."""

from __future__ import annotations

import os

EXIT_CODE = 70
"""Of a command that ended by a defect."""

_PACKAGES = ("ostinato", "torch", "torchvision", "timm", "transformers", "numpy", "pillow", "pyarrow", "safetensors")


def report(error: BaseException, words: list[str]) -> str:
    """Write a report.

    Args:
        error: not foreseen.
        words: of the command.

    Returns:
        A message for the user, which names the error, where it happened, and the report.
    """
    import platform  # none of these is needed by a command that ends well
    import tempfile
    import traceback
    from datetime import UTC, datetime

    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" ({frame[0].filename}, line {frame[0].lineno}, in {frame[0].name})" if frame else ""
    what = f"{type(error).__name__}: {error}{place}"
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
        return f"{what}. This should not happen, and no report of it could be written ({failure.strerror})."
    return (
        f"{what}. This should not happen: it is a defect of ostinato, or of a method of your own. A report is in "
        f"{path}; please send it with an issue (it names files of this machine)."
    )


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
