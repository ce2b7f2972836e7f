"""Prediction with finished runs, and scores on other data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ostinato.config import RunConfig
from ostinato.errors import DataError, InputError
from ostinato.evaluation.evaluator import BatchProtocol, Evaluation
from ostinato.interop import ExportedModel, load_exported
from ostinato.learner import Learner, Prediction
from ostinato.predicting import STDIN, images_of, texts_of
from ostinato.runs.build import samples_to_score
from ostinato.runs.rundir import RunDir
from ostinato.streams import LabeledDataset

if TYPE_CHECKING:
    from ostinato.evaluation.confusion import Confusion

MOST_LISTED = 10
"""Largest number of confused pairs, and of wrong answers, in a summary; tables have all."""


def load_run(run: str | Path, **where: Any) -> Learner:
    """Load the learner of a finished run or an artifact folder, with arguments of :meth:`Learner.load`.

    Raises:
        InputError: if there is no such directory, or the run is not finished.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run} is no directory. Give a run directory or an artifact folder.")
    return Learner.load(run, **where)


def load_model(path: str | Path, *, trust: bool = False, **where: Any) -> Learner | ExportedModel:
    """Load a finished run, an artifact folder, or a file of :func:`ostinato.interop.export`.

    Args:
        path: of the run, folder or file.
        trust: read files that can run code, see :func:`ostinato.interop.load_exported`.
        where: arguments of :meth:`Learner.load`.

    Raises:
        InputError: as :func:`load_run`, or if an argument has no effect.
    """
    if not Path(path).is_file():
        if trust:
            raise InputError(f"--trust is for exported files, but {path} is none. Leave it out.")
        return load_run(path, **where)
    if where:
        raise InputError(
            f"{path} is an exported model, which holds its weights and runs on the CPU. Leave out {', '.join(where)}."
        )
    return load_exported(path, trust=trust)


def config_of(run: str | Path) -> RunConfig | None:
    """Read the configuration of a run; None for an artifact folder without its run."""
    dirs = RunDir(run)
    return dirs.read_config() if dirs.config.exists() else None


class UnusableInput(DataError):
    """Error of an input that cannot be used.

    Args:
        source: name of the input.
        reason: why, as a sentence without the name.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source, self.reason = source, reason


def predict_inputs(
    run: str | Path,
    learner: Learner | ExportedModel,
    files: Sequence[Path | BufferedReader] = (),
    texts: Sequence[str] = (),
    *,
    column: str | None = None,
    topk: int = 1,
    threshold: float | None = None,
    reject_rate: float | None = None,
) -> Iterator[Prediction | UnusableInput]:
    """Predict images or texts, each on its own; yield after each batch.

    Args:
        run: directory of the run, which records the text column.
        learner: learner of the run, or an exported model.
        files: images or folders of images; for a text model, files of texts; among them standard input.
        texts: further texts.
        column: text column of a table; None finds it by its name.
        topk: classes per input.
        threshold: probability below which the answer is "unknown", see :meth:`Learner.predict`.
        reject_rate: share of samples of the classes that may be called "unknown".

    Yields:
        In order, a prediction or the error of an input that cannot be used.

    Raises:
        InputError: if the run learned images and texts are given.
    """
    named: Iterable[tuple[str, Any]]
    if isinstance(learner, Learner) and learner.method.backbone.modality == "text":
        config = config_of(run)
        named = texts_of(list(texts), list(files), column, config.data.text_column if config else None)
    elif texts or column:
        raise InputError(f"predict: --text and --column need a run that learned texts; {run} learned images.")
    else:
        named = ((STDIN if isinstance(file, bytes) else str(file), file) for file in images_of(files))
    sources: deque[str] = deque()

    def inputs() -> Iterator[Any]:
        for source, value in named:
            sources.append(source)
            yield value

    for result in learner.predictions(inputs(), topk=topk, threshold=threshold, reject_rate=reject_rate):
        source = sources.popleft()
        if not isinstance(result, DataError):
            yield replace(result, source=source)
        elif source == STDIN:  # the learner knows its position only
            yield UnusableInput(source, str(result).partition(": ")[2])
        else:
            yield UnusableInput(source, str(result).removeprefix(f"{source}: "))


@dataclass(frozen=True)
class Score:
    """Answers of a run to other data.

    Attributes:
        samples: scored, in the order of the answers.
        result: of the evaluation.
        protocol: name of the batch protocol; None if every sample is scored alone.
        confusion: answers by true class; None under a batch protocol.
        calibration_error: of the probabilities; None under a batch protocol, and for a learner without probabilities.
        uncalibrated_error: that of the softmax before calibration; None under a batch protocol.
    """

    samples: LabeledDataset
    result: Evaluation
    protocol: str | None
    confusion: Confusion | None

    @property
    def accuracy(self) -> float:
        """Fraction of correct samples."""
        return self.result.accuracy

    @property
    def classes(self) -> dict[str, float] | None:
        """Fraction correct by class; None under a batch protocol."""
        if self.confusion is None:
            return None
        return {one.name: one.recall for one in self.confusion.classes() if one.recall is not None}

    @property
    def calibration_error(self) -> float | None:  # noqa: D102
        return self.result.calibration_error

    @property
    def uncalibrated_error(self) -> float | None:  # noqa: D102
        return None if self.confusion is None else self.result.uncalibrated_error

    def summary(self) -> dict[str, Any]:
        """Results as plain values, in fractions: with the most confused pairs and most probable wrong answers."""
        from ostinato.report.explained import wrong_answers

        shown: dict[str, Any] = {"accuracy": self.accuracy, "images": self.result.images}
        if self.confusion is None:
            return shown | {"protocol": self.protocol, "task_id_accuracy": self.result.task_id_accuracy}
        wrong = wrong_answers(self.samples, self.result, self.confusion.names)
        return shown | {
            "calibration_error": self.calibration_error,
            "uncalibrated_error": self.uncalibrated_error,
            "classes": self.classes,
            "per_class": [
                asdict(one) | {"recall": one.recall, "precision": one.precision} for one in self.confusion.classes()
            ],
            "confused": [asdict(pair) for pair in self.confusion.pairs()[:MOST_LISTED]],
            "wrong": [asdict(one) for one in wrong[:MOST_LISTED]],
        }

    def write(self, out: Path) -> list[str]:
        """Write tables and figures, see :func:`ostinato.report.explained.write_report`; return the names of the files.

        Raises:
            InputError: under a batch protocol.
        """
        if self.confusion is None:
            raise InputError("out= needs samples that are scored alone. Leave out eval.protocol=batch.")
        from ostinato.report.explained import write_report

        return write_report(out, self.samples, self.result, self.confusion, self.summary())


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
        run: directory of the run, or an artifact folder.
        data: options of ``data.*``; ``path`` is required.
        protocol: batch protocol; None scores every sample alone.
        task_folders: whether an image folder has a folder per task; None for as in the run.
        skip_unknown: leave out classes that were not learned instead of raising an error.
        tell: receives remarks about the selection of samples.
        where: arguments of :meth:`Learner.load`.

    Raises:
        InputError: if an option is wrong.
        DataError: if the data cannot be scored.
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
    # Group by task for batches of one task, else by class.
    group_of = samples.labels if protocol is None else learner.method.task_of_class.cpu()[samples.labels]
    numbers = group_of.unique().tolist()
    groups = [samples.subset((group_of == number).nonzero().flatten()) for number in numbers]
    result = learner.evaluate(groups, protocol=protocol)
    if protocol is not None:
        return Score(samples, result, protocol.name, None)
    from ostinato.evaluation.confusion import Confusion  # which predicting does not need

    ordered = LabeledDataset.concat(groups)
    return Score(ordered, result, None, Confusion.of(ordered.labels.numpy(), result, learner.class_names))
