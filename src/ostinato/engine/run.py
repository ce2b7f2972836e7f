"""Starting, resuming and continuing runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ostinato.config import RunConfig, build_config
from ostinato.engine.checkpoint import Checkpoints
from ostinato.engine.rundir import RunDir, read_json
from ostinato.engine.session import Before, Session
from ostinato.errors import InputError
from ostinato.learner import BackboneSpec, Learner
from ostinato.report.console import Reporter


def start(config: RunConfig, out: str | Path, reporter: Reporter) -> dict[str, Any]:
    """Start a run in a new directory.

    Args:
        config: checked configuration.
        out: directory that does not exist or is empty.
        reporter: shows progress.

    Returns:
        The run's summary.

    Raises:
        InputError: bad options.
        DataError: bad data.
        Interrupted: asked to stop; the state is saved.
    """
    if config.eval.data is not None:
        raise InputError("eval.data: belongs to 'learn'; a run is scored on the test split of its own data.")
    dirs = RunDir(out)
    dirs.check_free()
    session = Session(dirs, config, reporter, make_learner(config), before=None)
    dirs.create(config)
    session.write_record()
    return session.execute()


def resume(path: str | Path, reporter: Reporter) -> dict[str, Any]:
    """Go on with a run, or with the newest unfinished ``learn`` inside it.

    Raises:
        InputError: if there is no run, or it is finished.
    """
    dirs = RunDir(path)
    dirs.read_config()
    for sub in reversed(_continuations(dirs)):
        if not sub.summary.exists():
            dirs = sub
            break
    config = dirs.read_config()
    if dirs.summary.exists():
        raise InputError(f"{dirs.root} is finished; there is nothing to resume. See 'ostinato report {dirs.root}'.")
    record = dirs.read_record() if dirs.record.exists() else {}
    before = Before(**record["continues"]) if record.get("continues") else None
    untouched = Checkpoints(dirs.checkpoints).latest() is None
    learner = _taught(dirs, config) if before is not None and untouched else make_learner(config)
    session = Session(dirs, config, reporter, learner, before=before)
    if not record:
        session.write_record()
    elif record["stream"] != session.stream.describe():
        raise InputError(
            f"{dirs.root}: the data changed since the run started (other files, classes or splits), so it cannot "
            f"be resumed to the same result. Restore {config.data.path!r} or start a new run."
        )
    return session.execute()


def learn_more(path: str | Path, overrides: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Teach a finished run further classes, from new data alone.

    The continuation is a run directory ``learn-NNN`` inside the first one, and can be resumed like it. When it
    is finished, its artifact takes the place of the old one, which stays beside it as ``artifact_before``.

    Args:
        path: a finished run.
        overrides: ``data.path`` with the new classes; ``eval.data``, a labelled folder of classes learned
            earlier; ``stream``, ``train``, ``checkpoint``, ``seed``, ``device``, ``precision`` as for a run.
        reporter: shows progress.

    Returns:
        The continuation's summary.
    """
    dirs = RunDir(path)
    parent = dirs.read_config()
    unfinished = [d for d in (dirs, *_continuations(dirs)) if not d.summary.exists()]
    if unfinished:
        raise InputError(f"{unfinished[0].root} is not finished; first run 'ostinato resume {dirs.root}'.")
    for key in ("method", "preprocess"):
        if key in overrides:
            raise InputError(f"{key}: cannot change in 'learn'; it belongs to what was learned. Leave it out.")
    if set(overrides.get("backbone", {})) - {"weights"}:
        raise InputError("backbone: only backbone.weights (where the file is now) may be given to 'learn'.")
    if "path" not in overrides.get("data", {}):
        raise InputError("learn: give the new classes, for example data=more_classes/.")
    base = parent.to_dict()
    keep = {k: v for k, v in base.get("data", {}).items() if k in ("validation", "limit_per_class", "crop", "augment")}
    config = build_config(base | {"data": keep, "stream": {}}, overrides)
    artifact = read_json(dirs.artifact / "artifact.json")
    before = Before(artifact["class_names"], len(artifact["task_sizes"]))
    sub = RunDir(dirs.root / f"learn-{len(_continuations(dirs)) + 1:03d}")
    learner = _taught(sub, config)
    if learner.method.needs_all_data:
        raise InputError(
            f"{config.method.name} trains on the data of all tasks; 'learn' has new data only. Start a new run on all."
        )
    session = Session(sub, config, reporter, learner, before=before)
    sub.create(config)
    session.write_record()
    return session.execute()


def _continuations(dirs: RunDir) -> list[RunDir]:
    return [RunDir(p) for p in sorted(dirs.root.glob("learn-[0-9]*")) if p.is_dir()]


def _taught(continuation: RunDir, config: RunConfig) -> Learner:
    """The learner that a continuation goes on from."""
    artifact = continuation.root.parent / "artifact"
    return Learner.load(artifact, weights=config.backbone.weights, **_machine(config))


def _machine(config: RunConfig) -> dict[str, Any]:
    return {
        "device": config.device,
        "precision": config.precision,
        "train": config.train.overrides(),
        "seed": config.seed,
        "accumulate": config.train.accumulate,
        "workers": config.data.workers,
        "eval_batch_size": config.eval.batch_size,
        "crop": config.data.crop,
    }


def make_learner(config: RunConfig) -> Learner:
    """The untaught learner of a configuration."""
    spec = BackboneSpec(config.backbone.name, config.backbone.weights, config.backbone.size, config.preprocess)
    return Learner(config.method.name, backbone=spec, **_machine(config), **config.method.options())
