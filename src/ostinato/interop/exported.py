"""Exported models that predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.files import read_regular
from ostinato.interop.about import ExportRecord, read_about
from ostinato.interop.formats import FORMATS, Format, Run
from ostinato.learner import Prediction
from ostinato.learner.inputs import Input
from ostinato.learner.predicting import Predictor, check_asked

MAX_BYTES = 2**34
"""Largest file to read."""


@dataclass(frozen=True)
class ExportedModel:
    """A model read from an exported file, with the predictions of the learner that it was made from.

    Attributes:
        path: of the file.
        about: its description.
        run: from pixels to scores.
        batch_size: images per batch.
    """

    path: Path
    about: ExportRecord
    run: Run
    batch_size: int = 64

    @torch.inference_mode()
    def scores(self, pixels: Tensor) -> Tensor:
        """Scores (B, C) in fp32 of pixels (B, 3, S, S) in uint8.

        Raises:
            DataError: if the file gives anything else than a finite score for every class.
        """
        scores = self.run(pixels)
        if scores.shape != (len(pixels), len(self.about.class_names)) or not bool(scores.isfinite().all()):
            raise DataError(f"{self.path} must give a finite score for each of its classes. Export the model again.")
        return scores

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the scores."""
        return self.about.class_names

    @property
    def temperature(self) -> float | None:
        """Temperature of the probabilities; None if no sample was held out."""
        return self.about.temperature

    def predictions(
        self,
        inputs: Iterable[Input | DataError],
        *,
        topk: int = 1,
        threshold: float | None = None,
        reject_rate: float | None = None,
    ) -> Iterator[Prediction | DataError]:
        """Predict a stream of images in order, see :meth:`ostinato.learner.Learner.predictions`.

        Raises:
            InputError: also if a rate of rejection is given, for which a file has no statistics.
        """
        check_asked(self.temperature, topk, threshold, reject_rate)
        if reject_rate is not None:
            raise InputError(
                f"reject_rate needs the statistics of a run, which {self.path} does not hold. Give the run, or a "
                "threshold."
            )
        predictor = Predictor(
            transform=self.about.transform,
            scores=self.scores,
            class_names=self.class_names,
            temperature=self.temperature,
            backbone=self.about.backbone,
            topk=topk,
            threshold=threshold,
        )
        return predictor.predictions(inputs, self.batch_size)


def load_exported(path: str | Path, *, trust: bool = False) -> ExportedModel:
    """Read a file of :func:`ostinato.interop.export`.

    Args:
        path: of the file; its suffix names the format.
        trust: read formats whose files can run code. An ONNX file cannot.

    Raises:
        DataError: if the file is damaged, or was not written by :func:`ostinato.interop.export`.
        InputError: if the suffix is unknown, a package is missing, or trust is needed.
    """
    path = Path(path)
    kind = format_of(path)
    if kind.runs_code and not trust:
        raise InputError(
            f"{path}: reading a {kind.suffix} file can run code that somebody put into it. Give --trust if you made it "
            "or trust its source, or export the model to onnx."
        )
    data = read_regular(path, MAX_BYTES)
    with _naming(path):
        text = kind.about(data)
    if text is None:
        raise DataError(f"{path} has no description. Only files of 'ostinato export' are read.")
    about = read_about(text, str(path))
    with _naming(path):
        return ExportedModel(path, about, kind.load(data))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in errors of its content, of any library."""
    try:
        yield
    except InputError:  # of a missing package
        raise
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None
    except (RuntimeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({type(error).__name__}). Export the model again.") from error


def format_of(path: Path) -> Format:
    """The format of a file by its suffix.

    Raises:
        InputError: if there is none.
    """
    for kind in FORMATS.values():
        if path.suffix == kind.suffix:
            return kind
    known = ", ".join(kind.suffix for kind in FORMATS.values())
    raise InputError(f"{path} is no directory of a run, and no exported model, which ends with {known}.")
