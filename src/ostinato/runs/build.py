"""From what a configuration says of data to sources, streams and samples to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ostinato.config import DataConfig, RunConfig, data_config
from ostinato.errors import InputError
from ostinato.paths import user_path
from ostinato.streams import Examples, Source, StreamOptions, TaskStream, kind_of, open_source, scorable

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
    data, stream = config.data, config.stream
    source = open_data(data, seed=config.seed, task_folders=True if stream.tasks == "folders" else None)
    step, tasks = stream.step, stream.tasks
    if tasks is None and stream.first is None and step is None:
        if data.sets is not None:
            tasks = "folders"
        elif before is not None:
            step = max(len(source.class_names), 1)
    options = StreamOptions(
        first=stream.first,
        step=step,
        tasks=tasks,
        order=stream.order,
        validation=data.validation,
        limit_per_class=data.limit_per_class,
        test_limit_per_class=data.test_limit_per_class,
        limit_per_task=data.limit_per_task,
        test_limit_per_task=data.test_limit_per_task,
        seed=config.seed,
    )
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
) -> tuple[Examples, list[str]]:
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
