"""Start, resume and continue runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from ostinato import artifact
from ostinato.config import RunConfig, absolute, build_config, check_changes
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.learner import check_inputs, located, way_back
from ostinato.records import StreamRecord
from ostinato.registry import is_plain_name
from ostinato.report.console import Reporter
from ostinato.runs.build import Before, make_learner, options_for, resolve, taught_learner
from ostinato.runs.checkpoint import Checkpoints
from ostinato.runs.placing import ARTIFACT_BEFORE
from ostinato.runs.rundir import CONTINUATION, RunDir
from ostinato.runs.session import Session
from ostinato.sections import SplitSection


def start(
    config: RunConfig, out: str | Path, reporter: Reporter, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Start a run in a new directory.

    Args:
        config: checked configuration.
        out: directory that does not exist or is empty.
        reporter: shows progress.
        processes: processes that share the run.

    Returns:
        Summary of the run.

    Raises:
        InputError: if an option is wrong.
        DataError: if the data cannot be used.
        Interrupted: if a signal stopped the run; its state is saved.
    """
    if config.eval.data is not None or config.eval.unknown != "refuse":
        raise InputError(
            "eval.data and eval.unknown need 'learn'; 'run' scores the test split of its data. Leave them out."
        )
    if config.data.twins != "refuse":
        raise InputError("data.twins needs 'learn', which compares names with known ones. Leave it out.")
    if config.learn.max_drop is not None or config.learn.accept:
        raise InputError("learn.max_drop and learn.accept need 'learn'. Leave them out.")
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
    """Resume a run, or the unfinished ``learn`` inside it.

    Args:
        path: directory of the run.
        overrides: options that :func:`ostinato.config.changeable` lists. Data and weights must have the same
            content. A method in a file needs ``method.name``, its file; a changed file is reported.
        reporter: shows progress.
        processes: processes that share the run; their number may differ from before.

    Returns:
        Summary of the run.

    Raises:
        InputError: if there is no run, another process works on it, or its data, weights or precision differ.
    """
    root = RunDir(path, writes=processes.is_main)
    root.read_config()
    check_changes("resume", overrides)
    if processes.broadcast_object(not _unfinished(root)):  # without a lock: the disk may be read-only
        return _already_done(root, reporter)
    with root.held():
        unfinished = _unfinished(root)
        if not unfinished:  # another process finished it meanwhile
            return _already_done(root, reporter)
        return _finish(unfinished[-1], root, overrides, reporter, processes)


def _unfinished(root: RunDir) -> list[RunDir]:
    """List the run and its continuations that are unfinished."""
    return [dirs for dirs in (root, *continuations(root)) if not dirs.summary.exists()]


def _already_done(root: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Read the results of a finished run, and remove checkpoints that a kill left behind."""
    reporter.message(f"{root.root} is finished; there is nothing to resume.")
    for dirs in (root, *continuations(root)):
        if dirs.writes:
            shutil.rmtree(dirs.checkpoints, ignore_errors=True)
    return root.read_summary() | {"run": str(root.root)}


def _finish(
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
    # Keep the precision that "auto" chose when the run began.
    config = absolute(build_config(began.to_dict(), overrides, {"precision": record.precision}))
    if Path(config.data.path).is_absolute() and not Path(config.data.path).exists():
        raise InputError(
            f"{dirs.root}: its data are not at {config.data.path} any more. Give their path: ostinato resume "
            f"{root.root} data=PATH"
        )
    before = _before(dirs) if dirs is not root else None
    fresh = processes.broadcast_object(not Checkpoints(dirs.checkpoints, record.run_id).any())
    if before is not None and fresh:
        learner = taught_learner(_base_artifact(dirs), config, processes, named_now)
    else:
        learner = make_learner(config, processes)
    learner.precision = began.precision  # the artifact records the option, not the choice of "auto"
    if learner.method.name != record.method:
        raise InputError(f"{dirs.root} is a run of {record.method}, not of {learner.method.name}.")
    if before is not None and not fresh:
        earlier = artifact.read(_base_artifact(dirs))
        learner.used, learner.label_groups = earlier.used, earlier.about.label_groups
        learner.samples = earlier.about.samples
    session = Session(dirs, resolve(config, learner, before, reporter.message), reporter, run_id=record.run_id)
    if not processes.broadcast_object(processes.is_main and _same_data(record.stream, session.stream.describe())):
        raise InputError(
            f"{dirs.root}: the data changed since the run started (other files, classes or splits), so it cannot "
            f"be resumed to the same result. Restore {config.data.path!r}, or delete {dirs.root} and start again."
        )
    if learner.origin is not None and (record.backbone is None or record.backbone.sha256 != learner.origin.sha256):
        raise InputError(
            f"{dirs.root}: the backbone's weights must be those that the run started with; their SHA-256 differs. "
            f"{way_back(learner.origin)}"
        )
    check_inputs(str(dirs.root), record.preprocess, learner.method.backbone)
    session.note_method(record, fresh)
    return session.execute()


def learn_more(
    path: str | Path, overrides: dict[str, Any], reporter: Reporter, processes: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Teach a finished run new classes, and more samples of known ones, from their data alone.

    The continuation is a run directory ``learn-NNN`` inside the run, and can be resumed. Its artifact replaces that of
    the run, which is kept in the continuation as ``artifact_before``. If a new class has learned nothing, or the
    accuracy on old classes fell too far, the run keeps its artifact, and the continuation is renamed to
    ``refused-NNN``.

    Args:
        path: directory of a finished run.
        overrides: options that :func:`ostinato.config.changeable` lists: ``data.path`` with the samples is
            required; ``eval.data`` is a labelled folder of classes learned earlier.
        reporter: shows progress.
        processes: processes that share the run.

    Returns:
        Summary of the continuation; ``accepted`` tells whether its model is in place.
    """
    dirs = RunDir(path, writes=processes.is_main)
    parent = dirs.read_config()
    with dirs.held():
        check_finished(dirs)
        check_changes("learn", overrides)
        if "path" not in overrides.get("data", {}):
            raise InputError("learn needs samples to learn, for example data=more_photos/.")
        base = parent.to_dict()
        carried = (*SplitSection.model_fields, "crop", "augment")
        keep = {k: v for k, v in base.get("data", {}).items() if k in carried}
        keep |= options_for(str(overrides["data"]["path"]), parent.data)
        # The artifact has the newest path of the weights; the configuration has the first.
        about = artifact.read_about(dirs.artifact)
        given = overrides.get("backbone", {}).get("weights")
        weights = given or located(dirs.artifact, about)
        moved: dict[str, Any] = {"backbone": {"weights": weights}} if weights else {}
        scoring = {k: v for k, v in base.get("eval", {}).items() if k not in ("protocol", "batch", "shots")}
        if parent.eval.protocol == "batch":
            reporter.message("The new classes are scored sample by sample; eval.protocol=batch is for 'run'.")
        if "data" not in overrides.get("eval", {}) and Path(parent.data.path).exists():
            reporter.message(
                f"The data of the run are still there: eval={parent.data.path} scores old classes on what was not "
                "learned from, before and after."
            )
        if about.bundle is not None:
            if overrides.get("bundle") is False:
                raise InputError(f"{dirs.root} holds the backbone's weights, and keeps them. Leave out bundle=false.")
            moved["bundle"] = True
        config = absolute(build_config(base | {"data": keep, "stream": {}, "eval": scoring}, moved, overrides))
        sub = RunDir(processes.broadcast_object(next_continuation(dirs)), writes=processes.is_main)
        before = _before(sub)
        learner = taught_learner(_base_artifact(sub), config, processes, overrides.get("method", {}).get("name"))
        if learner.method.data_seen == "all":
            raise InputError(
                f"learn has new data only; {learner.method.name} trains on all tasks. Start a new run on all data."
            )
        session = Session(sub, resolve(config, learner, before, reporter.message), reporter)
        session.create(config)
        return session.execute()


def check_finished(root: RunDir) -> None:
    """Raise InputError unless a run and its continuations are finished."""
    if unfinished := _unfinished(root):
        # A continuation that keeps the old artifact may hold the only copy.
        kept = unfinished[0] is root or artifact.exists(unfinished[0].root / ARTIFACT_BEFORE)
        drop = "" if kept else f", or delete {unfinished[0].root} to drop it"
        raise InputError(f"{unfinished[0].root} is not finished; first run 'ostinato resume {root.root}'{drop}.")


def _same_data(recorded: StreamRecord, found: dict[str, Any]) -> bool:
    """Compare two descriptions of a stream by samples and tasks, not by paths."""
    known = recorded.model_dump()
    return all(known[key] == found[key] for key in ("tasks", "class_order", "options")) and (
        known["known"] == found.get("known")
    )


def _base_artifact(continuation: RunDir) -> Path:
    """Find the artifact that a continuation starts from; it moves when the continuation ends."""
    kept = continuation.root / ARTIFACT_BEFORE
    return kept if artifact.exists(kept) else continuation.root.parent / "artifact"


def _before(continuation: RunDir) -> Before:
    about = artifact.read_about(_base_artifact(continuation))
    return Before(about.class_names, len(about.task_sizes), RunDir(continuation.root.parent).read_config())


def taught_since(run: Path) -> str | None:
    """Describe the finished continuations of a run in a sentence; None if there are none."""
    done = [sub.root.name for sub in continuations(RunDir(run)) if sub.summary.exists()]
    if not done:
        return None
    n = len(artifact.read_about(run / "artifact").class_names)
    return f"{run} was continued by {', '.join(done)}; its model now has {n} classes."


def next_continuation(dirs: RunDir) -> Path:
    """Directory of the next continuation of a run."""
    number = max((int(d.root.name.removeprefix(CONTINUATION)) for d in continuations(dirs)), default=0) + 1
    return dirs.root / f"{CONTINUATION}{number:03d}"


def continuations(dirs: RunDir) -> list[RunDir]:
    """List continuations by number, without those that were killed before their configuration was written."""
    found = [p for p in dirs.root.glob(f"{CONTINUATION}*") if re.fullmatch(r"[0-9]{3,9}", p.name[len(CONTINUATION) :])]
    subs = [RunDir(p, writes=dirs.writes) for p in sorted(found, key=lambda p: int(p.name[len(CONTINUATION) :]))]
    return [sub for sub in subs if sub.config.is_file()]
