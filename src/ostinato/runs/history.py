"""What a run learned when, the way back to an earlier model, and the acceptance of one that was kept aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ostinato import artifact
from ostinato.errors import InputError
from ostinato.runs.lifecycle import check_finished, continuations, next_continuation
from ostinato.runs.placing import ARTIFACT_BEFORE, free_path, identity, newest_refused, promote
from ostinato.runs.rundir import RunDir

UNDONE = "undone-"
"""Prefix of the directories of continuations that were rolled back."""


@dataclass(frozen=True)
class Learned:
    """A finished run or continuation.

    Attributes:
        name: of its directory.
        started: time of its start, ISO 8601 in UTC.
        new: names of the classes that it learned.
        known: names of the known classes that it learned more samples of.
        accuracy: on all classes after it, if it was scored on all.
    """

    name: str
    started: str
    new: list[str]
    known: list[str]
    accuracy: float | None


def history(run: str | Path) -> list[Learned]:
    """List a finished run and its continuations, the oldest first.

    Raises:
        InputError: if there is no run, or one of them is not finished.
        DataError: if a record is damaged.
    """
    root = RunDir(run)
    root.read_config()
    check_finished(root)
    return [_learned(dirs) for dirs in (root, *continuations(root))]


def _learned(dirs: RunDir) -> Learned:
    record, summary = dirs.read_record(), dirs.read_summary()
    stream = record.stream
    known = stream.known.classes if stream.known is not None else []
    return Learned(dirs.root.name, record.started, stream.class_order, known, summary["last_accuracy"])


def rollback(run: str | Path) -> str:
    """Restore the model before the newest continuation, which is kept as ``undone-NNN``; return a sentence.

    A kill in between leaves a whole model, and a repetition finishes the rollback.

    Raises:
        InputError: if there is no run, it was never continued, or something is unfinished.
        DataError: if the earlier model is damaged.
    """
    root = RunDir(run)
    root.read_config()
    with root.held():
        check_finished(root)
        done = continuations(root)
        if not done:
            raise InputError(f"rollback: {root.root} was never continued by 'learn', so that there is nothing to undo.")
        newest = done[-1]
        edited = artifact.read_about(root.artifact) != artifact.read_about(newest.artifact)
        artifact.copy(newest.root / ARTIFACT_BEFORE, root.artifact)
        kept = free_path(root.root / f"{UNDONE}{newest.root.name.rpartition('-')[2]}")
        newest.root.rename(kept)
    n = len(artifact.read_about(root.artifact).class_names)
    changes = " Changes of classes since then are undone, too." if edited else ""
    return f"{newest.root.name} is undone and kept as {kept.name}; the model has {n} classes.{changes}"


def accept(run: str | Path) -> str:
    """Put the newest model that a continuation kept aside in place; return a sentence.

    A kill in between leaves a whole model, and a repetition finishes it.

    Raises:
        InputError: if there is none, something is unfinished, or the model in place changed since.
        DataError: if a record or a model is damaged.
    """
    root = RunDir(run)
    root.read_config()
    with root.held():
        check_finished(root)
        sub, summary = newest_refused(root)
        if identity(root.artifact) not in (summary.get("in_place"), identity(sub.artifact)):
            raise InputError(
                f"learn --accept: the model in {root.root} changed since {sub.root.name}, which does not know of that. "
                "Learn the samples again."
            )
        promote(sub, root, sub.read_record().run_id)
        sub.write_summary(summary | {"accepted": True})
        place = next_continuation(root)
        sub.root.rename(place)
    n = len(artifact.read_about(root.artifact).class_names)
    return f"The model of {sub.root.name} is in place, and its directory is {place.name}; the model has {n} classes."
