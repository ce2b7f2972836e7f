"""Files of a run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from ostinato.config import RunConfig, build_config, read_toml
from ostinato.errors import DataError, InputError
from ostinato.files import write_bytes, write_json, write_sealed
from ostinato.locking import HOLDER, LOCK, locked
from ostinato.records import RECORD_FORMAT, RunRecord, parse, read_record, read_summary_file

CONTINUATION = "learn-"
"""Prefix of the directories of continuations."""

REFUSED = "refused-"
"""Prefix of the directories of continuations whose model was kept aside."""


class RunDir:
    """Paths and small files of a run.

    ``config.toml`` is written last when a run is created; a directory without it holds no run.

    Args:
        root: the directory; it need not exist yet.
        writes: whether this process writes; true in one process of a run.
    """

    def __init__(self, root: str | Path, *, writes: bool = True) -> None:
        self.root, self.writes = Path(root), writes
        self.config = self.root / "config.toml"
        self.record = self.root / "record.json"
        self.method = self.root / "method.py"
        self.events = self.root / "events.jsonl"
        self.matrix = self.root / "accuracy_matrix.csv"
        self.batch_matrix = self.root / "accuracy_matrix_batch.csv"
        self.answers = self.root / "answers.npz"
        self.answers_before = self.root / "answers_before.npz"
        self.summary = self.root / "summary.json"
        self.plots = self.root / "plots"
        self.checkpoints = self.root / "checkpoints"
        self.artifact = self.root / "artifact"

    def check_free(self) -> None:
        """Make sure that nothing would be overwritten.

        Raises:
            InputError: if the directory holds more than files of a killed creation.
        """
        if not self.writes or not self.root.exists():
            return
        if not self.root.is_dir() or any(path.name not in self._leftovers for path in self.root.iterdir()):
            hint = f"continue it with 'ostinato resume {self.root}', " if self.config.exists() else ""
            raise InputError(f"out={self.root} exists and is not empty; {hint}choose another name or remove it.")

    @property
    def _leftovers(self) -> set[str]:
        """Names of the files of a creation that was killed before it wrote ``config.toml``."""
        written = {HOLDER, self.record.name, self.method.name}
        return {LOCK, *written, *(f"{name}.part" for name in (*written, self.config.name))}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the run directory, which is made if it does not exist.

        Raises:
            InputError: if another process holds it.
            DataError: if a file or folder of the run is a link or of another kind.
        """
        if not self.writes:
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with locked(self.root):
            self._check_parts()
            yield

    def _check_parts(self) -> None:
        """Refuse links and pipes in place of files that are written or removed."""
        runs = [self, *(RunDir(path) for kind in (CONTINUATION, REFUSED) for path in self.root.glob(f"{kind}*"))]
        folders = [path for run in runs for path in (run.checkpoints, run.plots, run.artifact)]
        files = [path for run in runs for path in run._files]
        for path in (*folders, *(run.root for run in runs[1:])):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise DataError(f"{path} must be a folder of the run itself, not a link or a file. Restore it.")
        for path in files:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise DataError(f"{path} must be a file of the run itself, not a link or a folder. Restore it.")

    @property
    def _files(self) -> tuple[Path, ...]:
        """Files that a run writes."""
        answers = self.answers, self.answers_before
        return self.events, self.matrix, self.batch_matrix, *answers, self.config, self.record, self.summary

    def create(self, config: RunConfig, record: dict[str, Any], method: bytes | None) -> None:
        """Write the files of a new run, the configuration last; the directory is held.

        Args:
            config: all options.
            record: fields of :class:`ostinato.records.RunRecord`.
            method: text of the method's file; None for a registered method.
        """
        if not self.writes:
            return
        self.check_free()
        self.root.mkdir(parents=True, exist_ok=True)
        self.write_record(record, method)
        write_bytes(self.config, tomli_w.dumps(config.to_dict()).encode(errors="surrogateescape"))

    def write_record(self, record: dict[str, Any], method: bytes | None = None) -> None:
        """Write ``record.json``, and the text of the method's file if there is one."""
        if not self.writes:
            return
        record = {"format": RECORD_FORMAT} | record
        parse(RunRecord, record, self.record)
        if method is not None:
            write_bytes(self.method, method)
        write_sealed(self.record, record)

    def read_config(self) -> RunConfig:
        """Read the configuration of the run.

        Raises:
            InputError: if this is no run directory.
        """
        if not self.config.is_file():
            began = self.root.is_dir() and self.record.exists()
            why = "its run was stopped before it began; start it again" if began else "it has no config.toml"
            raise InputError(f"{self.root} is no run directory: {why}.")
        return build_config(read_toml(self.config))

    def read_record(self) -> RunRecord:
        """Read ``record.json``.

        Raises:
            DataError: if it is missing or damaged.
        """
        return read_record(self.record)

    def read_summary(self) -> dict[str, Any]:
        """Read ``summary.json``.

        Raises:
            DataError: if it is missing or damaged.
        """
        return read_summary_file(self.summary)

    def append_event(self, event: dict[str, Any]) -> None:
        """Add a line to ``events.jsonl``."""
        if not self.writes:
            return
        with self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def write_summary(self, result: dict[str, Any]) -> None:
        """Write ``summary.json``, which marks the run as finished."""
        if self.writes:
            write_json(self.summary, result)

    def events_size(self) -> int:
        """Size of ``events.jsonl`` in bytes."""
        return self.events.stat().st_size if self.events.exists() else 0

    def truncate_events(self, size: int) -> None:
        """Cut ``events.jsonl`` to the size at a checkpoint; a resumed run writes the rest again."""
        if self.writes and self.events_size() > size:
            os.truncate(self.events, size)
