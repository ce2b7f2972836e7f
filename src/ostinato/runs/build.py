"""Resolve a configuration into a learner, a stream, and samples to score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.config import DataConfig, RunConfig, data_config
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.learner import BackboneSpec, Learner
from ostinato.paths import user_path
from ostinato.sections import SplitSection
from ostinato.streams import LabeledDataset, Source, StreamOptions, TaskStream, kind_of, open_source, scorable

OPENING = ("path", "on_error", "sets", "image_column", "text_column", "label_column", "classes")
"""Options of ``data.*`` that say how data are opened; the others are about learning from them."""


@dataclass(frozen=True)
class Before:
    """What a continuation goes on from: the run in whose directory it lies.

    Attributes:
        class_names: of all classes learned so far.
        tasks: learned so far.
        config: that the run was started with.
    """

    class_names: list[str]
    tasks: int
    config: RunConfig


def open_data(data: DataConfig, *, seed: int, task_folders: bool | None = None) -> Source:
    """The source that ``data.*`` names."""
    return open_source(
        data.path,
        on_error=data.on_error,
        sets=data.sets,
        image_column=data.image_column,
        text_column=data.text_column,
        label_column=data.label_column,
        seed=seed,
        classes=data.classes,
        task_folders=task_folders,
    )


def options_for(path: str, known: DataConfig) -> dict[str, Any]:
    """Of the options with which other data were opened, those that can be meant for these too.

    Args:
        path: of the data.
        known: how the others were opened.

    Returns:
        Options of ``data.*``: what to do with bad samples, and sets, columns or classes where the data may have them.
    """
    meant: dict[str, Any] = {"on_error": known.on_error}
    folder = user_path(path, "data")
    if known.sets is not None and all((folder / name).is_dir() for name in known.sets):
        meant["sets"] = known.sets
    kind = kind_of(path)
    if "sets" in meant or kind in ("table", "hub"):
        meant |= {key: getattr(known, key) for key in ("image_column", "text_column", "label_column")}
    if kind == "glyphs":
        meant["classes"] = known.classes
    return {key: value for key, value in meant.items() if value is not None}


def make_stream(config: RunConfig, before: Before | None) -> TaskStream:
    """The stream of a configuration, numbered on from what was learned before.

    A continuation takes all its classes as one task unless ``stream`` says otherwise.
    """
    data, stream = config.data, config.stream.model_dump()
    source = open_data(data, seed=config.seed, task_folders=True if stream["tasks"] == "folders" else None)
    if stream["tasks"] is None and stream["first"] is None and stream["step"] is None:
        if data.sets is not None:
            stream["tasks"] = "folders"
        elif before is not None:
            stream["step"] = max(len(source.class_names), 1)
    splits = data.model_dump(include=set(SplitSection.model_fields))
    options = StreamOptions(**stream, **splits, seed=config.seed)
    if before is None:
        return TaskStream(source, options)
    return TaskStream(
        source,
        options,
        offset_classes=len(before.class_names),
        offset_tasks=before.tasks,
        known=before.class_names,
    )


def samples_to_score(
    given: dict[str, Any],
    run: RunConfig | None,
    class_names: Sequence[str],
    used: np.ndarray,
    *,
    seed: int = 0,
    task_folders: bool | None = None,
    skip_unknown: bool = False,
) -> tuple[LabeledDataset, list[str]]:
    """Labelled samples of classes that were learned, without those that were learned from.

    Args:
        given: options of ``data.*``, ``path`` among them; what they leave open is as in the run.
        run: what the run was started with, where it is known.
        class_names: position = label.
        used: fingerprints of samples that must not be scored, see :class:`ostinato.learner.Learner`.
        seed: of rendered data, where no run says it.
        task_folders: whether an image folder has a folder per task; None for as in the run, on the run's own folder.
        skip_unknown: leave out classes that were not learned, which is an error otherwise.

    Returns:
        The samples, and what there is to tell about the choice.

    Raises:
        InputError: options that have nothing to do with opening data, or that do not fit them.
        DataError: data that cannot be scored.
    """
    if wrong := [key for key in given if key not in OPENING]:
        raise InputError(f"data.{wrong[0]}: is about learning; scoring takes of data.* only {', '.join(OPENING)}.")
    path = given["path"]
    if run is None:
        data = data_config(given)
    else:
        data = data_config(options_for(path, run.data) | given)
        own = user_path(path, "data").resolve() == user_path(run.data.path, "data").resolve()
        if task_folders is None and own and run.stream.tasks == "folders" and not data.sets:
            task_folders = True
        seed = run.seed
    source = open_data(data, seed=seed, task_folders=task_folders)
    return scorable(source, class_names, used, skip_unknown=skip_unknown)


def _settings(config: RunConfig) -> dict[str, Any]:
    """How a learner computes and trains: arguments of its constructor."""
    return {
        "device": config.device,
        "precision": config.precision,
        "train": config.train.overrides(),
        "seed": config.seed,
        "accumulate": config.train.accumulate,
        "on_divergence": config.train.on_divergence,
        "workers": config.data.workers,
        "eval_batch_size": config.eval.batch_size,
        "crop": config.data.crop,
        "cache": config.cache,
        "state_cache": config.state_cache,
        "compile": config.compile,
    }


def make_learner(config: RunConfig, processes: ProcessGroup = SINGLE_PROCESS) -> Learner:
    """The untaught learner of a configuration."""
    of = config.backbone
    spec = BackboneSpec(of.name, of.weights, of.size, config.preprocess, of.length, of.readout)
    return Learner(
        config.method.name, backbone=spec, processes=processes, **_settings(config), **config.method.options()
    )


def taught_learner(artifact: Path, config: RunConfig, processes: ProcessGroup, method: str | None) -> Learner:
    """The learner that a continuation goes on from.

    Args:
        artifact: what was learned so far.
        config: of the continuation.
        processes: those that share the run.
        method: the file of its method, where the user names one.
    """
    return Learner.load(
        artifact, weights=config.backbone.weights, method=method, processes=processes, **_settings(config)
    )


@dataclass(frozen=True)
class Work:
    """What a run learns and is scored on, resolved from its configuration.

    Attributes:
        learner: untaught, or for a continuation taught so far.
        stream: the tasks to learn.
        augment: how training images are changed.
        tests: per task, what it is scored on; empty where a continuation brings too few samples to set any aside.
        old: samples of classes learned before, as the first group of every evaluation; empty without.
        before: what is continued; None for a run of its own.
        split: that ``tests`` are of, "test" or "validation".
        checkpoint_every: steps between checkpoints within a task; 0 for none.
    """

    learner: Learner
    stream: TaskStream
    augment: str
    tests: list[LabeledDataset]
    old: list[LabeledDataset]
    before: Before | None
    split: str
    checkpoint_every: int


def resolve(config: RunConfig, learner: Learner, before: Before | None, tell: Callable[[str], None]) -> Work:
    """Resolve a configuration into what a session needs.

    Args:
        config: checked.
        learner: of the configuration, which learns here which classes count as one answer.
        before: what is continued.
        tell: called with sentences about the choice of samples.

    Raises:
        InputError: if there is nothing to score on, or an option fits neither the data nor the backbone.
        DataError: bad data.
    """
    stream = make_stream(config, before)
    augment = stream.source.augment if config.data.augment == "auto" else config.data.augment
    if config.data.alike:
        if before is not None or stream.label_groups is None:
            raise InputError(
                "data.alike counts classes of the same name in two of data.sets as one answer, but "
                + ("'learn' adds one set of classes." if before else "no two sets share a name. Leave it out.")
            )
        learner.label_groups = stream.label_groups.tolist()
    old = _old_samples(config, learner, before, tell)
    tests = [_held_out(config, stream, before, i).with_transform(learner.eval_transform) for i in range(len(stream))]
    learner.train_transform(augment)  # refused before anything is written
    if before is None and not len(tests[0]):
        raise InputError(
            f"eval.split={config.eval.split}: the first task has no sample to score on. Give its classes more "
            f"samples, put other classes first, or raise data.validation (now {config.data.validation})."
        )
    return Work(learner, stream, augment, tests, old, before, config.eval.split, config.checkpoint.every)


def _held_out(config: RunConfig, stream: TaskStream, before: Before | None, i: int) -> LabeledDataset:
    """The samples that task ``i`` is scored on."""
    task = stream.task(i)
    if config.eval.split == "validation":
        return task.validation
    if before is not None and stream.source.test is None:
        return task.train.subset([])
    return stream.test(i)


def _old_samples(
    config: RunConfig, learner: Learner, before: Before | None, tell: Callable[[str], None]
) -> list[LabeledDataset]:
    """Samples of classes learned before, as one group; none without a folder of them."""
    if before is None or config.eval.data is None:
        return []
    samples, notes = samples_to_score(
        {"path": config.eval.data}, before.config, before.class_names, learner.used,
        skip_unknown=config.eval.unknown == "skip",
    )  # fmt: skip
    for note in notes:
        tell(note)
    return [samples]
