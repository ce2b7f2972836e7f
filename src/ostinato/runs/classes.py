"""Changes of the classes of a finished run or a saved learner, whose artifact is replaced at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ostinato import artifact
from ostinato.config import RunConfig, data_config
from ostinato.errors import DataError, did_you_mean
from ostinato.learner import Learner
from ostinato.learner.editing import LearnedClass, classes_of, merge_classes, remove_class, rename_class
from ostinato.learner.saving import artifact_folder
from ostinato.runs.build import open_data, options_for
from ostinato.runs.lifecycle import check_finished
from ostinato.runs.rundir import RunDir
from ostinato.runs.scoring import config_of, load_run
from ostinato.streams import LabeledDataset, Source, Split
from ostinato.streams.source import held_out_count, shuffled


def list_classes(run: str | Path) -> list[LearnedClass]:
    """List the classes of a finished run or a saved learner.

    Raises:
        InputError: if the run is not finished.
        DataError: if the folder holds no learner.
    """
    return classes_of(artifact.read_about(artifact_folder(Path(run))))


def rename(run: str | Path, old: str, new: str, **where: Any) -> str:
    """Rename a class; return a sentence. For arguments and errors see :func:`remove`."""

    def change(learner: Learner) -> str:
        rename_class(learner, old, new)
        return f"{old!r} is called {new!r} now."

    return _edit(run, change, where)


def merge(run: str | Path, name: str, other: str, **where: Any) -> str:
    """Make one class of two, under the first name; return a sentence. For arguments and errors see :func:`remove`."""

    def change(learner: Learner) -> str:
        merge_classes(learner, name, other)
        return f"{other!r} is {name!r} now."

    return _edit(run, change, where)


def remove(run: str | Path, name: str, data: str | None = None, **where: Any) -> str:
    """Remove a class.

    Args:
        run: directory of a finished run, or folder of a saved learner.
        name: of the class.
        data: folder or table with all samples of the class that were learned, to forget their share of common sums.
        where: arguments of :meth:`Learner.load`.

    Returns:
        A sentence about the change.

    Raises:
        InputError: if there is no such class, or the method cannot do without it.
        DataError: if the data lack the samples.
    """

    def change(learner: Learner) -> str:
        samples = None if data is None else _learned_of(learner, name, data, config_of(run))
        stays = remove_class(learner, name, samples)
        if stays is None:
            return f"{name!r} is removed, and nothing of its samples stays."
        return (
            f"{name!r} is removed and never predicted again. Its samples stay in {stays}, summed over all "
            "classes; before the removal, data=FOLDER with these samples takes them out of there, too."
        )

    return _edit(run, change, where)


def _edit(run: str | Path, change: Callable[[Learner], str], where: dict[str, Any]) -> str:
    """Change a learner and replace its artifact."""
    dirs = RunDir(run)
    of_run = dirs.config.is_file()
    with dirs.held() if of_run else nullcontext():
        if of_run:
            check_finished(dirs)
        folder = artifact_folder(Path(run))
        learner = load_run(run, **where)
        said = change(learner)
        learner.save(folder, run_id=artifact.read_about(folder).run_id)
    return said


def _learned_of(learner: Learner, name: str, path: str, run: RunConfig | None) -> LabeledDataset:
    """All training samples of a class in data, without those that were set aside.

    Raises:
        DataError: if the data lack the class, or have another number of samples than were learned.
    """
    data = data_config((options_for(path, run.data) if run else {}) | {"path": path})
    seed = run.seed if run else learner.settings.seed
    source = open_data(data, seed=seed)
    if name not in source.class_names:
        raise DataError(f"{source.name} has no class {name!r}. {did_you_mean(name, source.class_names)}")
    wanted = None if learner.samples is None or name not in learner.class_names else learner.samples
    n = None if wanted is None else wanted[learner.class_names.index(name)]
    choices = _choices(learner, source, name, run.data.validation if run else 0.0, seed)
    for samples in choices:
        if len(samples) == n:
            return samples
    raise DataError(
        f"{source.name} must hold all {n} samples of {name!r} that were learned, but has {len(choices[0])} that were "
        "learned from or validated on. Give the data that it was learned from, or leave data= out."
    )


def _choices(learner: Learner, source: Source, name: str, validation: float, seed: int) -> list[LabeledDataset]:
    """Samples of a class that were used: all of them, and the training share."""
    place = source.class_names.index(name)

    def used(split: Split, rows: np.ndarray) -> LabeledDataset:
        samples = LabeledDataset(split, rows, np.zeros(len(rows)), seed=seed)
        return samples.subset(np.flatnonzero(np.isin(samples.fingerprints(), learner.used)))

    splits = [source.train] if source.test is None else [source.train, source.test]
    everywhere = [used(split, np.flatnonzero(split.labels == place)) for split in splits]
    mixed = shuffled(np.flatnonzero(source.train.labels == place), name, seed)
    train = np.sort(mixed[held_out_count(len(mixed), validation) :])
    return [LabeledDataset.concat(everywhere), used(source.train, train)]
