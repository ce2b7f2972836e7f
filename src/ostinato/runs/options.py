"""Options of a new run from a preset, a file and the command line."""

from __future__ import annotations

from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from ostinato.config import RunConfig, build_config
from ostinato.defaults import DEFAULT_METHOD
from ostinato.errors import InputError
from ostinato.presets import DATA, read_preset


def new_run(
    method: str | None, given: dict[str, Any], file: dict[str, Any] | None = None, preset: str | None = None
) -> RunConfig:
    """Build the configuration of a new run.

    Args:
        method: registered name, or the file of a method. None takes that of the options or the default.
        given: nested options, which override the file.
        file: nested options, which override the preset.
        preset: ``benchmark`` or ``benchmark/variant``.

    Raises:
        InputError: if an option is wrong, there is no such preset, or a preset lacks the path of its data.
    """
    file, base = file or {}, {}
    if method is None:
        tables = [options.get("method", {}) for options in (given, file)]
        named = [table["name"] for table in tables if isinstance(table, dict) and "name" in table]
        if preset and not named:
            raise InputError(f"-p {preset} needs a method: ostinato run METHOD -p {preset} data=PATH.")
        method = named[0] if named else DEFAULT_METHOD
    if preset:
        published = read_preset(preset, method)
        base = published.options
        if "path" not in given.get("data", {}) and "path" not in file.get("data", {}):
            raise InputError(f"-p {preset} needs data=PATH: {DATA[published.data]}.")
    return build_config(base, file, given, {"method": {"name": method}})


def directory_for(config: RunConfig) -> str:
    """Name the directory of a run by method, data and time, with a number if it exists."""
    return free_directory(f"{Path(config.method.name).stem}-{Path(config.data.path).name or 'data'}")


def free_directory(stem: str) -> str:
    """Name a directory in ``runs/`` that does not exist, by a stem and the time, with a number if it exists."""
    name = f"runs/{stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    names = chain([name], (f"{name}-{i}" for i in count(2)))
    return next(free for free in names if not Path(free).exists())
