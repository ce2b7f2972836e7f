"""The model of a continuation in the place of the earlier one, or kept aside."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ostinato import artifact
from ostinato.errors import InputError, NotAcceptedError
from ostinato.files import canonical
from ostinato.runs.rundir import CONTINUATION, REFUSED, RunDir

ARTIFACT_BEFORE = "artifact_before"
"""Folder in a continuation with the run's earlier artifact; made once its own artifact is complete."""


def promote(sub: RunDir, parent: RunDir, run_id: str) -> None:
    """Replace the parent's artifact by that of a continuation, after keeping a copy."""
    record = parent.read_record()
    if run_id not in record.continued_by:
        parent.write_record(record.model_dump() | {"continued_by": [*record.continued_by, run_id]})
    kept = sub.root / ARTIFACT_BEFORE
    if not artifact.exists(kept):
        artifact.copy(parent.artifact, kept)
    artifact.copy(sub.artifact, parent.artifact)


def set_aside(sub: RunDir) -> RunDir:
    """Rename the directory of a continuation whose model is refused, so that the run is as if it had not been."""
    number = sub.root.name.removeprefix(CONTINUATION)
    place = free_path(sub.root.with_name(f"{REFUSED}{number}"))
    sub.root.rename(place)
    return RunDir(place, writes=sub.writes)


def identity(folder: Path) -> str:
    """SHA-256 of the description of a model, which lists the hashes of its files."""
    return hashlib.sha256(canonical(artifact.read_about(folder).model_dump(mode="json")).encode()).hexdigest()


def newest_refused(root: RunDir) -> tuple[RunDir, dict[str, Any]]:
    """Find the newest continuation whose model was kept aside, with its summary.

    Raises:
        InputError: if there is none.
    """
    found = [RunDir(path) for path in root.root.glob(f"{REFUSED}*")]
    whole = [sub for sub in found if sub.config.is_file() and sub.summary.is_file()]
    if not whole:
        raise InputError(
            f"learn --accept: {root.root} has no model that was kept aside. Give samples to learn, such as "
            "data=more_photos/."
        )
    newest = max(whole, key=lambda sub: sub.read_record().started)
    return newest, newest.read_summary()


def not_accepted(result: dict[str, Any], run: Path) -> NotAcceptedError:
    """Error with the problems of a continuation whose model was kept aside, and the way to accept it."""
    problems = "".join(f"\n  {problem}" for problem in result["problems"])
    return NotAcceptedError(
        f"The earlier model stays in place, since{problems}\nThe new model is kept in {result['run']}. Put it in place "
        f"all the same with: ostinato learn {run} --accept"
    )


def free_path(path: Path) -> Path:
    """The path, or one with a number behind it, that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
