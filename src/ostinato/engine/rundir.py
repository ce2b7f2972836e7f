"""The files of a run directory."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import tomli_w

from ostinato.config import RunConfig, build_config, read_toml
from ostinato.errors import DataError, InputError


class RunDir:
    """Paths and small files of one run.

    Args:
        root: the directory; it need not exist yet.
        writes: off for all but one of the processes that work on a run.
    """

    def __init__(self, root: str | Path, *, writes: bool = True) -> None:
        self.root, self.writes = Path(root), writes
        self.config = self.root / "config.toml"
        self.record = self.root / "record.json"
        self.method = self.root / "method.py"
        self.events = self.root / "events.jsonl"
        self.matrix = self.root / "accuracy_matrix.csv"
        self.summary = self.root / "summary.json"
        self.plots = self.root / "plots"
        self.checkpoints = self.root / "checkpoints"
        self.artifact = self.root / "artifact"

    def check_free(self) -> None:
        """Make sure that nothing would be overwritten.

        Raises:
            InputError: if there is something in the directory already.
        """
        if self.writes and self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            hint = f"continue it with 'ostinato resume {self.root}', " if self.config.exists() else ""
            raise InputError(f"out={self.root} exists and is not empty; {hint}choose another name or remove it.")

    def create(self, config: RunConfig) -> None:
        """Make the directory and write the configuration."""
        if not self.writes:
            return
        self.check_free()
        self.root.mkdir(parents=True, exist_ok=True)
        write_text(self.config, tomli_w.dumps(config.to_dict()))

    def read_config(self) -> RunConfig:
        """The configuration that the run was started with.

        Raises:
            InputError: if this is no run directory.
        """
        if not self.config.exists():
            raise InputError(f"{self.root} is no run directory: it has no config.toml.")
        return build_config(read_toml(self.config))

    def read_record(self) -> dict[str, Any]:
        """What the run recorded about its data, weights and versions."""
        return read_json(self.record)

    def append_event(self, event: dict[str, Any]) -> None:
        """Add a line to ``events.jsonl``."""
        if not self.writes:
            return
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def write(self, file: Path, value: dict[str, Any]) -> None:
        """Write one of the JSON files, whole or not at all."""
        if self.writes:
            write_json(file, value)

    def events_size(self) -> int:
        """Bytes of ``events.jsonl``."""
        return self.events.stat().st_size if self.events.exists() else 0

    def truncate_events(self, size: int) -> None:
        """Drop events after a checkpoint, which a resumed run will write again."""
        if self.writes and self.events_size() > size:
            os.truncate(self.events, size)


def texts_of_method(record: dict[str, Any]) -> list[str | None]:
    """SHA-256 of the texts of the user's own method that a run was learned by, in order; None of one known by name."""
    return [record.get("method_sha256"), *record.get("method_changed_to", [])]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON as :func:`write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all, and to the disk."""
    draft = path.with_name(path.name + ".part")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read JSON.

    Raises:
        DataError: if the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
