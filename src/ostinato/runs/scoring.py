"""Predict with a finished run, and score it on other data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ostinato.config import RunConfig
from ostinato.errors import DataError, InputError
from ostinato.evaluation.evaluator import BatchProtocol
from ostinato.learner import Learner, Prediction
from ostinato.predicting import image_files, texts_of
from ostinato.runs.build import samples_to_score
from ostinato.runs.rundir import RunDir


def load_run(run: str | Path, **where: Any) -> Learner:
    """The learner of a finished run, or of an artifact folder.

    Args:
        run: its directory.
        where: arguments of :meth:`Learner.load`.

    Raises:
        InputError: if there is no such directory, or the run is not finished.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run} is no directory; give a run directory or an artifact folder.")
    return Learner.load(run, **where)


def config_of(run: str | Path) -> RunConfig | None:
    """The configuration of a run; None for an artifact that was copied out of it."""
    dirs = RunDir(run)
    return dirs.read_config() if dirs.config.exists() else None


def predict_inputs(
    run: str | Path,
    learner: Learner,
    files: Sequence[Path] = (),
    texts: Sequence[str] = (),
    *,
    column: str | None = None,
    topk: int = 1,
) -> Iterator[Prediction | DataError]:
    """Predict images or texts, each on its own, as soon as a batch of them is scored.

    Args:
        run: that the learner is of, which knows the column of its texts.
        learner: what was learned.
        files: images or folders of them; for texts, files of texts.
        texts: given as such.
        column: of the texts in a table; None finds it by its name.
        topk: classes per input.

    Yields:
        A prediction, or the error of an input that cannot be used, in order.

    Raises:
        InputError: texts for a run that learned images.
    """
    named: Iterable[tuple[str, Any]]
    if learner.method.backbone.modality == "text":
        config = config_of(run)
        named = texts_of(list(texts), list(files), column, config.data.text_column if config else None)
    elif texts or column:
        raise InputError(f"predict: {run} has learned images; --text and --column are for texts.")
    else:
        named = ((str(file), file) for file in image_files(list(files)))
    sources: deque[str] = deque()

    def inputs() -> Iterator[Any]:
        for source, one in named:
            sources.append(source)
            yield one

    for one in learner.predictions(inputs(), topk=topk):
        source = sources.popleft()
        yield one if isinstance(one, DataError) else replace(one, source=source)


@dataclass(frozen=True)
class Score:
    """Accuracy of a run on other data.

    Attributes:
        accuracy: fraction of samples that are right.
        images: number of samples.
        modality: "image" or "text".
        classes: fraction right by class; None under a batch protocol.
        protocol: name of the batch protocol; None where every sample is scored alone.
        task_id_accuracy: fraction whose task is right; None where no task is inferred.
    """

    accuracy: float
    images: int
    modality: str
    classes: dict[str, float] | None
    protocol: str | None
    task_id_accuracy: float | None


def score_run(
    run: str | Path,
    data: dict[str, Any],
    *,
    protocol: BatchProtocol | None = None,
    task_folders: bool | None = None,
    skip_unknown: bool = False,
    tell: Callable[[str], None] | None = None,
    **where: Any,
) -> Score:
    """Score a finished run on labelled samples of classes that it has learned.

    Args:
        run: its directory, or an artifact folder.
        data: options of ``data.*``, ``path`` among them.
        protocol: None scores every sample alone.
        task_folders: whether an image folder has a folder per task; None for as in the run.
        skip_unknown: leave out classes that were not learned, which is an error otherwise.
        tell: called with sentences about the choice of samples.
        where: arguments of :meth:`Learner.load`.

    Raises:
        InputError: wrong options.
        DataError: data that cannot be scored.
    """
    learner = load_run(run, **where)
    samples, notes = samples_to_score(
        data,
        config_of(run),
        learner.class_names,
        learner.used,
        seed=learner.settings.seed,
        task_folders=task_folders,
        skip_unknown=skip_unknown,
    )
    for note in notes:
        if tell is not None:
            tell(note)
    # A batch is of one task; without one, every class is counted.
    group_of = samples.labels if protocol is None else learner.method.task_of_class.cpu()[samples.labels]
    numbers = group_of.unique().tolist()
    groups = [samples.subset((group_of == number).nonzero().flatten()) for number in numbers]
    result = learner.evaluate(groups, protocol=protocol)
    classes = None
    if protocol is None:
        counts = zip(numbers, result.correct, result.totals, strict=True)
        classes = {learner.class_names[label]: right / total for label, right, total in counts}
    return Score(
        result.accuracy,
        result.images,
        samples.modality,
        classes,
        protocol.name if protocol else None,
        result.task_id_accuracy,
    )
