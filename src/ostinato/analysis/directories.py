"""Finished runs below a directory, for analyses of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def finished_runs(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the name, relative to ``folder``, and the directory of each finished run, without continuations."""
    for path in sorted(folder.rglob("config.toml")):
        run = path.parent
        if not (run / "summary.json").is_file() or (run.parent / "config.toml").is_file():
            continue  # unfinished, or a continuation, which has the options of its run
        yield (str(run.relative_to(folder)) if run != folder else run.resolve().name), run


def by_name(where: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield options by dotted key, with the options of parts."""
    for key, value in options.items():
        if isinstance(value, dict):
            yield f"{where}.{key}", value.get("name")
            yield from by_name(f"{where}.{key}", {k: v for k, v in value.items() if k != "name"})
        else:
            yield f"{where}.{key}", value
