"""The figures that papers show of what a run has learned: a picture and a table each, from public hooks of methods.

An analysis asks a method for a hook (a public method on it) and never for its name, so that a new method gets every
analysis whose hooks it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ostinato.analysis import (
    attention,
    block_weights,
    layer_importance,
    layer_sweep,
    mask_density,
    prompt_usage,
    task_confusion,
)
from ostinato.analysis.base import Analysis, Findings, Subject
from ostinato.errors import InputError, did_you_mean
from ostinato.learner import Learner
from ostinato.methods.base import Method
from ostinato.runs.rundir import RunDir

ANALYSES: dict[str, Analysis] = {
    part.ANALYSIS.name: part.ANALYSIS
    for part in (attention, block_weights, layer_importance, mask_density, prompt_usage, task_confusion)
}
"""Analyses of one run."""

SWEEP = "layer_sweep"
"""The analysis of a directory of runs."""


@dataclass(frozen=True)
class Written:
    """Where an analysis went.

    Attributes:
        png: the picture.
        csv: the table.
        notes: what the reader should know besides, a sentence each.
    """

    png: Path
    csv: Path
    notes: tuple[str, ...] = ()


def supported(method: Method) -> list[str]:
    """The analyses that a method has the hooks for."""
    return [name for name, analysis in ANALYSES.items() if analysis.supports(method)]


def kinds(
    run: str | Path, *, device: str = "auto", weights: str | None = None, method: str | None = None
) -> dict[str, str]:
    """What can be analysed of a run, or of a directory of runs.

    Args:
        run: a finished run, an artifact, or a directory of runs.
        device: where to compute.
        weights: where the backbone's weights are now, if they moved.
        method: the file to take the run's method from, if it moved or changed.

    Returns:
        Name to what it shows.
    """
    folder = _existing(run)
    if not _is_run(folder):
        return {SWEEP: layer_sweep.SHOWS}
    learner = _load(folder, device, weights, method)
    return {name: ANALYSES[name].shows for name in supported(learner.method)}


def analyse(
    run: str | Path,
    kind: str,
    images: Sequence[str | Path] = (),
    *,
    data: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    weights: str | None = None,
    method: str | None = None,
    task: int | None = None,
    head: int | None = None,
) -> Written:
    """Write the picture and the table of an analysis.

    Args:
        run: a finished run, or an artifact where no data are needed; for ``layer_sweep`` a directory of runs.
        kind: one of :func:`kinds`.
        images: files, for ``attention``.
        data: where the run's data are now, for ``prompt_usage`` and ``task_confusion``; None for where they were.
        out: directory; None for ``analysis`` in the run's.
        device: where to compute.
        weights: where the backbone's weights are now, if they moved.
        method: the file to take the run's method from, if it moved or changed.
        task: the only task to show, for ``mask_density``; None for all together.
        head: the only head to show, for ``attention``; None for the mean over heads.

    Returns:
        The files ``KIND.png`` and ``KIND.csv``; earlier ones are replaced.

    Raises:
        InputError: if the run's method does not support the kind, or an option does not belong to it.
        DataError: bad images or data.
    """
    folder = _existing(run)
    if kind != SWEEP and kind not in ANALYSES:
        raise InputError(f"analyse: there is no {kind!r}. {did_you_mean(kind, [*ANALYSES, SWEEP])}")
    takes = ANALYSES[kind].takes if kind != SWEEP else ()
    given = {"images": ", ".join(map(str, images)) or None, "data": data, "task": task, "head": head}
    if extra := [name for name, value in given.items() if value is not None and name not in takes]:
        raise InputError(f"{kind}: makes no use of {extra[0]}, got {given[extra[0]]}; leave it out.")
    if kind == SWEEP:
        findings = layer_sweep.find(folder)
    else:
        if not _is_run(folder):
            raise InputError(f"{folder} is no run and no artifact; of a directory of runs only {SWEEP} can be made.")
        learner = _load(folder, device, weights, method)
        known = supported(learner.method)
        if kind not in known:
            raise InputError(f"{kind}: {learner.method.name} does not support it; it supports {', '.join(known)}.")
        subject = Subject(folder, learner, [Path(i) for i in images], data, task, head)
        findings = ANALYSES[kind].find(subject)
    target = Path(out) if out is not None else folder / "analysis"
    target.mkdir(parents=True, exist_ok=True)
    written = Written(target / f"{kind}.png", target / f"{kind}.csv", findings.notes)
    findings.draw(written.png)
    findings.write_csv(written.csv)
    return written


def _existing(run: str | Path) -> Path:
    folder = Path(run)
    if not folder.is_dir():
        raise InputError(f"{folder} is no directory; give a run, an artifact, or a directory of runs.")
    return folder


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.toml", "artifact.json"))


def _load(folder: Path, device: str, weights: str | None, method: str | None) -> Learner:
    """The learner, computing as the run did."""
    dirs = RunDir(folder)
    if not dirs.config.exists():
        return Learner.load(folder, device=device, weights=weights, method=method)
    config = dirs.read_config()
    return Learner.load(
        folder,
        device=device,
        weights=weights,
        method=method,
        precision=config.precision,
        workers=config.data.workers,
        eval_batch_size=config.eval.batch_size,
    )


__all__ = ["ANALYSES", "SWEEP", "Analysis", "Findings", "Subject", "Written", "analyse", "kinds", "supported"]
