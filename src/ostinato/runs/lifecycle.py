"""Starting, resuming and continuing runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from ostinato import artifact
from ostinato.config import RunConfig, absolute, build_config, check_changes
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.learner import check_inputs
from ostinato.records import StreamRecord
from ostinato.registry import is_plain_name
from ostinato.report.console import Reporter
from ostinato.runs.build import Before, make_learner, options_for, resolve, taught_learner
from ostinato.runs.checkpoint import Checkpoints
from ostinato.runs.rundir import RunDir
from ostinato.runs.session import ARTIFACT_BEFORE, Session
from ostinato.sections import SplitSection

CONTINUATION = "learn-"
"""How the directories of continuations begin."""


def start(
    config: RunConfig, out: str | Path, reporter: Reporter, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Start a run in a new directory.

    Args:
        config: checked configuration.
        out: directory that does not exist or is empty.
        reporter: shows progress.
        processes: those that share the run.

    Returns:
        The run's summary.

    Raises:
        InputError: bad options.
        DataError: bad data.
        Interrupted: asked to stop; the state is saved.
    """
    if config.eval.data is not None or config.eval.unknown != "refuse":
        raise InputError(
            "eval.data, eval.unknown: belong to 'learn'; a run is scored on the test split of its own data."
        )
    config = absolute(config)
    dirs = RunDir(processes.broadcast_object(str(out)), writes=processes.is_main)
    dirs.check_free()
    session = Session(dirs, resolve(config, make_learner(config, processes), None, reporter.message), reporter)
    with dirs.held():
        session.create(config)
        return session.execute()


def resume(
    path: str | Path, overrides: dict[str, Any], reporter: Reporter, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Go on with a run, or with the unfinished ``learn`` inside it.

    Args:
        path: directory of the run.
        overrides: options that :func:`ostinato.config.changeable` names. Data and weights must still be the same,
            which is checked. ``method.name`` is the file of a method that is no registered one, which is run only if
            it is given here; a change of its text is reported.
        reporter: shows progress.
        processes: those that share the run; it may have been begun by another number of them.

    Returns:
        The run's summary.

    Raises:
        InputError: if there is no run, another process works on it, or its data, weights or precision are not the same.
    """
    root = RunDir(path, writes=processes.is_main)
    root.read_config()
    check_changes("resume", overrides)
    if processes.broadcast_object(not _unfinished(root)):  # nothing to lock, perhaps a read-only disk
        return _already_done([root, *_continuations(root)], reporter)
    with root.held():
        unfinished = _unfinished(root)
        if not unfinished:  # whoever held it has finished it
            return _already_done([root, *_continuations(root)], reporter)
        return _go_on(unfinished[-1], root, overrides, reporter, processes)


def _unfinished(root: RunDir) -> list[RunDir]:
    """A run, if it is unfinished, and its continuations that are."""
    return [dirs for dirs in (root, *_continuations(root)) if not dirs.summary.exists()]


def _already_done(parts: list[RunDir], reporter: Reporter) -> dict[str, Any]:
    """The results of a finished run; what a kill left of checkpoints, its own and its continuations', is removed."""
    root = parts[0]
    reporter.message(f"{root.root} is finished; there is nothing to resume.")
    for dirs in parts:
        if dirs.writes:
            shutil.rmtree(dirs.checkpoints, ignore_errors=True)
    return root.read_summary() | {"run": str(root.root)}


def _go_on(
    dirs: RunDir, root: RunDir, overrides: dict[str, Any], reporter: Reporter, processes: ProcessGroup
) -> dict[str, Any]:
    """Finish a run, or a continuation in ``root``."""
    began = dirs.read_config()
    named, named_now = began.method.name, overrides.get("method", {}).get("name")
    if not is_plain_name(named) and named_now is None:
        raise InputError(
            f"{dirs.root} is a run of the file {named}. A file is run only if you name it: "
            f"ostinato resume {root.root} method=FILE"
        )
    record = dirs.read_record()
    # What "auto" meant on the machine where the run began.
    config = absolute(build_config(began.to_dict(), overrides, {"precision": record.precision}))
    if Path(config.data.path).is_absolute() and not Path(config.data.path).exists():
        raise InputError(
            f"{dirs.root}: its data are not at {config.data.path} any more. Say where they are now: ostinato resume "
            f"{root.root} data=PATH"
        )
    before = _before(dirs) if dirs is not root else None
    fresh = processes.broadcast_object(not Checkpoints(dirs.checkpoints, record.run_id).any())
    untaught = before is None or not fresh
    learner = (
        make_learner(config, processes)
        if untaught
        else taught_learner(_goes_on_from(dirs), config, processes, named_now)
    )
    learner.precision = began.precision  # as asked for, which its artifact says
    if learner.method.name != record.method:
        raise InputError(f"{dirs.root} is a run of {record.method}, not of {learner.method.name}.")
    if before is not None and not fresh:
        earlier = artifact.read(_goes_on_from(dirs))
        learner.used, learner.label_groups = earlier.used, earlier.about.label_groups
    session = Session(dirs, resolve(config, learner, before, reporter.message), reporter, run_id=record.run_id)
    if not processes.broadcast_object(processes.is_main and _same_data(record.stream, session.stream.describe())):
        raise InputError(
            f"{dirs.root}: the data changed since the run started (other files, classes or splits), so it cannot "
            f"be resumed to the same result. Restore {config.data.path!r}, or delete {dirs.root} and start anew."
        )
    if learner.origin is not None and (record.backbone is None or record.backbone.sha256 != learner.origin.sha256):
        raise InputError(
            f"{dirs.root}: the backbone's weights are not the ones that the run started with (SHA-256 differs). "
            "Give the original file as backbone.weights=FILE."
        )
    check_inputs(str(dirs.root), record.preprocess, learner.method.backbone)
    session.note_method(record, fresh)
    return session.execute()


def learn_more(
    path: str | Path, overrides: dict[str, Any], reporter: Reporter, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Teach a finished run further classes, from new data alone.

    The continuation is a run directory ``learn-NNN`` inside the first one, and can be resumed like it. When it
    is finished, its artifact takes the place of the old one, which stays beside it as ``artifact_before``.

    Args:
        path: a finished run.
        overrides: ``data.path`` with the new classes; ``eval.data``, a labelled folder of classes learned
            earlier; ``stream``, ``train``, ``checkpoint``, ``seed``, ``device``, ``precision`` as for a run.
        reporter: shows progress.
        processes: those that share the run.

    Returns:
        The continuation's summary.
    """
    dirs = RunDir(path, writes=processes.is_main)
    dirs.read_config()
    with dirs.held():
        return _learn_more(dirs, overrides, reporter, processes)


def _learn_more(dirs: RunDir, overrides: dict[str, Any], reporter: Reporter, processes: ProcessGroup) -> dict[str, Any]:
    parent = dirs.read_config()
    if unfinished := [d for d in (dirs, *_continuations(dirs)) if not d.summary.exists()]:
        # Once it keeps the old artifact, that may be the only one.
        kept = unfinished[0] is dirs or artifact.exists(unfinished[0].root / ARTIFACT_BEFORE)
        drop = "" if kept else f", or delete {unfinished[0].root} to drop it"
        raise InputError(f"{unfinished[0].root} is not finished; first run 'ostinato resume {dirs.root}'{drop}.")
    check_changes("learn", overrides)
    if "path" not in overrides.get("data", {}):
        raise InputError("learn: give the new classes, for example data=more_classes/.")
    base = parent.to_dict()
    carried = (*SplitSection.model_fields, "crop", "augment")
    keep = {k: v for k, v in base.get("data", {}).items() if k in carried}
    keep |= options_for(str(overrides["data"]["path"]), parent.data)
    # The artifact knows where the weights are now; the first run's configuration may be out of date.
    weights = artifact.read_about(dirs.artifact).backbone.weights
    where: dict[str, Any] = {"backbone": {"weights": weights}} if weights else {}
    config = absolute(build_config(base | {"data": keep, "stream": {}}, where, overrides))
    number = max((int(d.root.name.removeprefix(CONTINUATION)) for d in _continuations(dirs)), default=0) + 1
    sub = RunDir(processes.broadcast_object(dirs.root / f"{CONTINUATION}{number:03d}"), writes=processes.is_main)
    before = _before(sub)
    learner = taught_learner(_goes_on_from(sub), config, processes, overrides.get("method", {}).get("name"))
    if learner.method.data_seen == "all":
        raise InputError(
            f"{learner.method.name} trains on the data of all tasks; 'learn' has new data only. Start a new run on all."
        )
    session = Session(sub, resolve(config, learner, before, reporter.message), reporter)
    session.create(config)
    return session.execute()


def _same_data(recorded: StreamRecord, found: dict[str, Any]) -> bool:
    """Whether two descriptions of a stream tell of the same samples in the same tasks, wherever they lie."""
    known = recorded.model_dump()
    return all(known[key] == found[key] for key in ("tasks", "class_order", "options"))


def _goes_on_from(continuation: RunDir) -> Path:
    """The artifact that a continuation goes on from, wherever it was stopped while it put its own in that place."""
    kept = continuation.root / ARTIFACT_BEFORE
    return kept if artifact.exists(kept) else continuation.root.parent / "artifact"


def _before(continuation: RunDir) -> Before:
    about = artifact.read_about(_goes_on_from(continuation))
    return Before(about.class_names, len(about.task_sizes), RunDir(continuation.root.parent).read_config())


def taught_since(run: Path) -> str | None:
    """A sentence about what a finished run was taught after it was finished, if anything."""
    done = [sub.root.name for sub in _continuations(RunDir(run)) if sub.summary.exists()]
    if not done:
        return None
    n = len(artifact.read_about(run / "artifact").class_names)
    return f"{run} was taught more since by {', '.join(done)}, each a run of its own: its model now knows {n} classes."


def _continuations(dirs: RunDir) -> list[RunDir]:
    """Continuations in the order in which they were made; one that was killed while it was made is none."""
    found = [p for p in dirs.root.glob(f"{CONTINUATION}*") if re.fullmatch(r"[0-9]{3,9}", p.name[len(CONTINUATION) :])]
    there = [RunDir(p, writes=dirs.writes) for p in sorted(found, key=lambda p: int(p.name[len(CONTINUATION) :]))]
    return [sub for sub in there if sub.config.is_file()]
