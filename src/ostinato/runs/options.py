"""Options of a new run, from a preset, a file and words."""

from __future__ import annotations

from datetime import datetime
from itertools import chain, count
from pathlib import Path
from typing import Any

from ostinato.config import RunConfig, build_config
from ostinato.errors import InputError
from ostinato.presets import DATA, read_preset


def new_run(
    method: str, given: dict[str, Any], file: dict[str, Any] | None = None, preset: str | None = None
) -> RunConfig:
    """The checked configuration of a new run.

    Args:
        method: a registered name, or the file of a method.
        given: nested options, which win over those of the file.
        file: nested options, which win over those of the preset.
        preset: a benchmark, or ``benchmark/variant``.

    Raises:
        InputError: a wrong option, no such preset, or a preset without the path of its data.
    """
    file, base = file or {}, {}
    if preset:
        published = read_preset(preset, method)
        base = published.options
        if "path" not in given.get("data", {}) and "path" not in file.get("data", {}):
            raise InputError(f"-p {preset}: give the data as data=PATH, {DATA[published.data]}.")
    return build_config(base, file, given, {"method": {"name": method}})


def directory_for(config: RunConfig) -> str:
    """The directory of a run for which none was given: method, data and the time, with a number if it is taken."""
    return free_directory(f"{Path(config.method.name).stem}-{Path(config.data.path).name or 'data'}")


def free_directory(stem: str) -> str:
    """A directory in ``runs/`` that does not exist: a name, the time, and a number if that is taken."""
    name = f"runs/{stem}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    names = chain([name], (f"{name}-{i}" for i in count(2)))
    return next(free for free in names if not Path(free).exists())
