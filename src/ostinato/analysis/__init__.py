"""Analyses of runs: a figure and a CSV table each, from public hooks of methods.

An analysis needs hooks (public methods) of a method, not its name. A new method therefore gets every analysis whose
hooks it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato.analysis import (
    attention,
    block_weights,
    layer_importance,
    layer_sweep,
    mask_density,
    mask_path,
    prompt_usage,
    radar,
    task_confusion,
    weight_density,
)
from ostinato.analysis.base import Analysis, Findings, Subject
from ostinato.errors import InputError, did_you_mean
from ostinato.learner import Learner
from ostinato.methods.base import Method
from ostinato.runs.rundir import RunDir

ANALYSES: dict[str, Analysis] = {
    part.ANALYSIS.name: part.ANALYSIS
    for part in (
        attention,
        block_weights,
        layer_importance,
        mask_density,
        mask_path,
        prompt_usage,
        task_confusion,
        weight_density,
    )
}
"""Analyses of one run."""

OF_DIRECTORIES: dict[str, Any] = {"layer_sweep": layer_sweep, "radar": radar}
"""Analyses of a directory of runs."""


@dataclass(frozen=True)
class Written:
    """Figure and table of an analysis, and remarks for the reader."""

    png: Path
    csv: Path
    notes: tuple[str, ...] = ()


def supported(method: Method) -> list[str]:
    """List the analyses whose hooks a method has."""
    return [name for name, analysis in ANALYSES.items() if analysis.supports(method)]


def kinds(
    run: str | Path, *, device: str = "auto", weights: str | None = None, method: str | None = None
) -> dict[str, str]:
    """List the analyses of a run or of a directory of runs: descriptions by name.

    Args:
        run: finished run, artifact, or directory of runs.
        device: device to compute on.
        weights: path of the backbone's weights, if they moved.
        method: file of the run's method, if it moved or changed.
    """
    folder = _existing(run)
    if not _is_run(folder):
        return {name: part.SHOWS for name, part in OF_DIRECTORIES.items()}
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
    """Write the figure ``KIND.png`` and the table ``KIND.csv`` of an analysis; earlier ones are replaced.

    Args:
        run: finished run, or artifact if no data are needed; for ``layer_sweep`` and ``radar`` a directory of runs.
        kind: one of :func:`kinds`.
        images: image files, for ``attention``.
        data: path of the run's data, if they moved; for ``mask_path``, ``prompt_usage`` and ``task_confusion``.
        out: directory; None for ``analysis`` in that of the run.
        device: device to compute on.
        weights: path of the backbone's weights, if they moved.
        method: file of the run's method, if it moved or changed.
        task: task to show, from 1, for ``mask_density`` and ``weight_density``, None for all together; and for
            ``mask_path``, None for the first.
        head: head to show, for ``attention``; None for the mean over heads.

    Raises:
        InputError: if the run's method does not support the kind, or the kind does not take an option.
        DataError: if images or data cannot be used.
    """
    folder = _existing(run)
    if kind not in OF_DIRECTORIES and kind not in ANALYSES:
        raise InputError(f"analyse: there is no analysis {kind!r}. {did_you_mean(kind, [*ANALYSES, *OF_DIRECTORIES])}")
    takes = ANALYSES[kind].takes if kind in ANALYSES else ()
    given = {"images": ", ".join(map(str, images)) or None, "data": data, "task": task, "head": head}
    if extra := [name for name, value in given.items() if value is not None and name not in takes]:
        raise InputError(f"{kind} does not use {extra[0]}, got {given[extra[0]]}. Leave it out.")
    if kind in OF_DIRECTORIES:
        findings = OF_DIRECTORIES[kind].find(folder)
    else:
        if not _is_run(folder):
            others = " and ".join(OF_DIRECTORIES)
            raise InputError(f"{kind} needs a run or an artifact, and {folder} is neither. Only {others} take others.")
        learner = _load(folder, device, weights, method)
        known = supported(learner.method)
        if kind not in known:
            raise InputError(f"{kind}: {learner.method.name} does not support it. It supports {', '.join(known)}.")
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
        raise InputError(f"{folder} is no directory. Give a run, an artifact, or a directory of runs.")
    return folder


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.toml", "artifact.json"))


def _load(folder: Path, device: str, weights: str | None, method: str | None) -> Learner:
    """Load the learner with the run's options for computing."""
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


__all__ = ["ANALYSES", "OF_DIRECTORIES", "Analysis", "Findings", "Subject", "Written", "analyse", "kinds", "supported"]
