"""Resolution of a configuration into a learner, a stream and test samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.config import DataConfig, RunConfig, data_config
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.evaluation.evaluator import BatchProtocol
from ostinato.learner import BackboneSpec, Learner, check_refines
from ostinato.lookup import get_method
from ostinato.methods.base import Method, TaskInferring
from ostinato.paths import user_path
from ostinato.registry import check_options
from ostinato.sections import MAX_DROP, SplitSection
from ostinato.streams import LabeledDataset, Source, StreamOptions, TaskStream, kind_of, open_source, scorable

OPENING = ("path", "on_error", "sets", "image_column", "text_column", "label_column", "classes")
"""Options of ``data.*`` for opening data; the others concern training."""


@dataclass(frozen=True)
class Before:
    """State of a run before a continuation.

    Attributes:
        class_names: names of the classes learned so far.
        tasks: number of tasks learned so far.
        config: configuration of the run.
    """

    class_names: list[str]
    tasks: int
    config: RunConfig


def open_data(data: DataConfig, *, seed: int, task_folders: bool | None = None) -> Source:
    """Open the source of ``data.*``."""
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
    """Select the options of a run's data that also apply to other data.

    Args:
        path: path of the other data.
        known: options of the run's data.

    Returns:
        Options of ``data.*``: ``on_error``, and sets, columns or classes if the other data may have them.
    """
    options: dict[str, Any] = {"on_error": known.on_error}
    folder = user_path(path, "data")
    if known.sets is not None and all((folder / name).is_dir() for name in known.sets):
        options["sets"] = known.sets
    kind = kind_of(path)
    if "sets" in options or kind in ("table", "hub"):
        options |= {key: getattr(known, key) for key in ("image_column", "text_column", "label_column")}
    if kind == "glyphs":
        options["classes"] = known.classes
    return {key: value for key, value in options.items() if value is not None}


def make_stream(config: RunConfig, before: Before | None, used: np.ndarray | None = None) -> TaskStream:
    """Make the stream of a configuration; that of a continuation numbers its classes and tasks after the run's.

    A continuation learns all its new classes as one task unless ``stream`` says otherwise.

    Args:
        config: configuration of the run.
        before: state before a continuation; None for other runs.
        used: fingerprints of the samples learned before; those of known classes are left out.
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
    known = before.class_names
    return TaskStream(
        source, options, offset_classes=len(known), offset_tasks=before.tasks, known=known, used=used, twins=data.twins
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
    """Select labelled samples of learned classes, without the samples that were trained on.

    Args:
        given: options of ``data.*``; ``path`` is required, others default to the run's.
        run: configuration of the run, if known.
        class_names: names by label.
        used: fingerprints of samples that must not be scored, see :class:`ostinato.learner.Learner`.
        seed: seed of rendered data if ``run`` is None.
        task_folders: whether an image folder has a folder per task; None for as in the run, on the run's data.
        skip_unknown: leave out classes that were not learned instead of raising an error.

    Returns:
        The samples, and remarks about their selection.

    Raises:
        InputError: if an option does not concern opening data, or does not fit the data.
        DataError: if the data cannot be scored.
    """
    if wrong := [key for key in given if key not in OPENING]:
        raise InputError(f"data.{wrong[0]} has no effect on scoring. Of data.*, it takes {', '.join(OPENING)}.")
    path = given["path"]
    if run is None:
        data = data_config(given)
    else:
        data = data_config(options_for(path, run.data) | given)
        same = user_path(path, "data").resolve() == user_path(run.data.path, "data").resolve()
        if task_folders is None and same and run.stream.tasks == "folders" and not data.sets:
            task_folders = True
        seed = run.seed
    source = open_data(data, seed=seed, task_folders=task_folders)
    return scorable(source, class_names, used, skip_unknown=skip_unknown)


def make_learner(config: RunConfig, processes: ProcessGroup = SINGLE_PROCESS) -> Learner:
    """Make the untrained learner of a configuration."""
    of, options = config.backbone, config.method.options()
    check_options(get_method(config.method.name), options)  # none of them may be an argument of the learner
    spec = BackboneSpec(of.name, of.weights, of.size, config.preprocess, of.length, of.readout)
    return _configured(Learner, config.method.name, config, processes, backbone=spec, **options)


def taught_learner(artifact: Path, config: RunConfig, processes: ProcessGroup, method: str | None) -> Learner:
    """Load the learner that a continuation starts from; ``method`` is the file of its method, if given."""
    weights = config.backbone.weights
    return _configured(Learner.load, artifact, config, processes, weights=weights, method=method)


def _configured(
    make: Callable[..., Learner], source: str | Path, config: RunConfig, processes: ProcessGroup, /, **arguments: Any
) -> Learner:
    """Make a learner from a method's name or an artifact, with the options for computing and training."""
    return make(
        source,
        device=config.device,
        precision=config.precision,
        train=config.train.overrides(),
        seed=config.seed,
        accumulate=config.train.accumulate,
        on_divergence=config.train.on_divergence,
        workers=config.data.workers,
        eval_batch_size=config.eval.batch_size,
        crop=config.data.crop,
        cache=config.cache,
        state_cache=config.state_cache,
        compile=config.compile,
        processes=processes,
        **arguments,
    )


@dataclass(frozen=True)
class Work:
    """Objects of a run, resolved from its configuration.

    Attributes:
        learner: untrained, or for a continuation trained so far.
        stream: tasks to learn.
        augment: augmentation of training images.
        tests: test samples per task; empty if a continuation has too few samples to hold any out.
        old: samples of earlier classes, the first group of every evaluation; may be empty.
        known: test samples of the known classes that a continuation brings more samples of, the next group; may be
            empty.
        before: state before a continuation; None for other runs.
        split: split of ``tests``, "test" or "validation".
        protocol: scores the same samples once more in batches of one task; None for per sample alone.
        checkpoint_every: steps between checkpoints within a task; 0 for none.
        bundle: whether the artifact holds the backbone's weights.
        max_drop: largest fall of the accuracy on old classes after a continuation.
        accept: whether its model takes the earlier one's place in any case.
    """

    learner: Learner
    stream: TaskStream
    augment: str
    tests: list[LabeledDataset]
    old: list[LabeledDataset]
    known: list[LabeledDataset]
    before: Before | None
    split: str
    protocol: BatchProtocol | None
    checkpoint_every: int
    bundle: bool
    max_drop: float
    accept: bool


def resolve(config: RunConfig, learner: Learner, before: Before | None, tell: Callable[[str], None]) -> Work:
    """Resolve a configuration for a session.

    Args:
        config: configuration of the run.
        learner: learner of the configuration; its ``label_groups`` are set if classes share an answer.
        before: state before a continuation; None for other runs.
        tell: receives remarks about the selection of samples.

    Raises:
        InputError: if there is nothing to score, or an option does not fit the data or the backbone.
        DataError: if the data cannot be used.
    """
    protocol = protocol_of(config, type(learner.method))
    if protocol is not None and before is not None:
        raise InputError(
            "eval.protocol=batch needs 'run', since 'learn' scores earlier tasks as one group. Leave it out."
        )
    stream = make_stream(config, before, learner.used)
    if stream.known_names:
        check_refines(learner.method, stream.known_names)
    augment = stream.source.augment if config.data.augment == "auto" else config.data.augment
    if config.data.alike:
        if before is not None or stream.label_groups is None:
            raise InputError(
                "data.alike needs classes of the same name in two of data.sets; "
                + ("'learn' adds one set of classes." if before else "no two sets share a name. Leave it out.")
            )
        learner.label_groups = stream.label_groups.tolist()
    old = _old_samples(config, learner, before, tell)
    tests = [_held_out(config, stream, before, i).with_transform(learner.eval_transform) for i in range(len(stream))]
    known = [group.with_transform(learner.eval_transform) for group in _known_held_out(config, stream)]
    if before is not None and config.learn.max_drop is not None and not old and not known:
        raise InputError(
            f"learn.max_drop={config.learn.max_drop:g} needs samples of old classes to score. Give a labelled folder "
            "of them as eval=FOLDER."
        )
    learner.train_transform(augment)  # raise errors before anything is written
    if before is None and not len(tests[0]):
        raise InputError(
            f"eval.split={config.eval.split}: the first task has no sample to score on. Give its classes more "
            f"samples, learn other classes first, or raise data.validation (now {config.data.validation})."
        )
    return Work(
        learner,
        stream,
        augment,
        tests,
        old,
        known,
        before,
        config.eval.split,
        protocol,
        config.checkpoint.every,
        config.bundle,
        MAX_DROP if config.learn.max_drop is None else config.learn.max_drop,
        config.learn.accept,
    )


def protocol_of(config: RunConfig, method: type[Method]) -> BatchProtocol | None:
    """The batch protocol of a configuration; None scores every sample alone.

    Raises:
        InputError: if an option has no effect, or the method infers no task.
    """
    protocol = BatchProtocol.of(config.eval.protocol, config.eval.batch, config.eval.shots)
    if protocol is not None and not issubclass(method, TaskInferring):
        raise InputError(f"eval.protocol=batch needs a method that infers tasks; {method.name} does not.")
    return protocol


def _held_out(config: RunConfig, stream: TaskStream, before: Before | None, i: int) -> LabeledDataset:
    """Held-out samples of task ``i``."""
    task = stream.task(i)
    if config.eval.split == "validation":
        return task.validation
    if before is not None and stream.source.test is None:
        return task.train.subset([])
    return stream.test(i)


def _known_held_out(config: RunConfig, stream: TaskStream) -> list[LabeledDataset]:
    """Held-out samples of known classes with more samples as one group; none without any."""
    found = stream.task(0).known_validation if config.eval.split == "validation" else stream.known_test()
    return [found] if found is not None and len(found) else []


def _old_samples(
    config: RunConfig, learner: Learner, before: Before | None, tell: Callable[[str], None]
) -> list[LabeledDataset]:
    """Samples of earlier classes as one group; none if ``eval.data`` is not given."""
    if before is None or config.eval.data is None:
        return []
    data, skip = {"path": config.eval.data}, config.eval.unknown == "skip"
    samples, notes = samples_to_score(data, before.config, before.class_names, learner.used, skip_unknown=skip)
    for note in notes:
        tell(note)
    return [samples]
