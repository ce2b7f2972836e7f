"""Prediction of images and texts in batches, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.learner.inputs import Input, read_image
from ostinato.reading import ahead, batched
from ostinato.streams import Transform
from ostinato.streams.texts import EMPTY, is_empty

UNKNOWN = "unknown"
"""Answer to an input that is rejected."""

NO_PROBABILITIES = (
    "Probabilities need samples that were held out of training: learn the model again, with data.validation above 0."
)


@dataclass(frozen=True)
class Prediction:
    """The best classes of one input.

    Attributes:
        source: the file, or the position of an image without a file or of a text.
        classes: names, best first.
        scores: of these classes; comparable within one learner only.
        probabilities: of these classes, calibrated on held-out samples; None for a learner without any.
        typicality: share of held-out samples that lie at least as far from the classes learned; None unless a rate of
            rejection was given.
        unknown: whether the best class is rejected.
    """

    source: str
    classes: list[str]
    scores: list[float]
    probabilities: list[float] | None
    typicality: float | None = None
    unknown: bool = False

    @property
    def answer(self) -> str:
        """The best class, or "unknown"."""
        return UNKNOWN if self.unknown else self.classes[0]


@dataclass(frozen=True)
class Predictor:
    """Predictor of the best classes of inputs.

    Attributes:
        transform: of inputs at test time.
        scores: from transformed inputs (B, ...) to scores (B, C).
        class_names: of the C classes.
        temperature: T of the probabilities softmax(scores / T); None for no probabilities.
        backbone: its name, for messages.
        topk: classes per input.
        threshold: smallest probability of an answer; None for any.
        reject_rate: largest typicality that is rejected; None for none.
        typicality: from transformed inputs to shares (B,); None without a rate.
    """

    transform: Transform
    scores: Callable[[Tensor], Tensor]
    class_names: list[str]
    temperature: float | None
    backbone: str
    topk: int = 1
    threshold: float | None = None
    reject_rate: float | None = None
    typicality: Callable[[Tensor], Tensor] | None = None

    def predictions(self, inputs: Iterable[Input | DataError], batch_size: int) -> Iterator[Prediction | DataError]:
        """A prediction or an error per input, in order; threads read files ahead."""
        transformed = ahead(self._transformed, enumerate(inputs), 2 * batch_size)
        return (result for batch in batched(transformed, batch_size) for result in self._predicted(batch))

    def _transformed(self, item: tuple[int, Any]) -> tuple[str, Tensor] | DataError:
        """Name and tensor of an input."""
        index, given = item
        if isinstance(given, DataError):
            return given
        try:
            source, sample = self._read(index, given)
        except DataError as error:
            return error
        return source, self.transform(sample)

    def _read(self, index: int, given: Any) -> tuple[str, Any]:
        """Name of an input, and its text or image for the transform."""
        if self.transform.modality == "text":
            if not isinstance(given, str):
                raise InputError(f"predict: {self.backbone} takes texts, but input {index} is {given!r}.")
            if is_empty(given):
                raise DataError(f"text {index}: {EMPTY}.")
            return f"text {index}", given
        return read_image(given, index, self.backbone)

    def _predicted(self, batch: list[tuple[str, Tensor] | DataError]) -> Iterator[Prediction | DataError]:
        """Predictions and errors of a batch."""
        made: Iterator[Prediction] = iter(())
        if usable := [item for item in batch if not isinstance(item, DataError)]:
            sources, inputs = zip(*usable, strict=True)
            made = self._answers(sources, batch_of(self.transform, list(inputs)))
        for item in batch:
            yield item if isinstance(item, DataError) else next(made)

    def _answers(self, sources: Sequence[str], x: Tensor) -> Iterator[Prediction]:
        """Predictions of transformed inputs."""
        scores = self.scores(x).float()
        best = scores.topk(min(self.topk, scores.shape[1]), dim=1)
        names = [[self.class_names[c] for c in row] for row in best.indices.tolist()]
        probabilities: list[list[float] | None] = [None] * len(sources)
        unknown = torch.zeros(len(sources), dtype=torch.bool, device=scores.device)
        if self.temperature is not None:
            shares = (scores.double() / self.temperature).softmax(1).gather(1, best.indices)
            probabilities = shares.tolist()
            if self.threshold is not None:
                unknown |= shares[:, 0] < self.threshold
        typical: list[float | None] = [None] * len(sources)
        if self.typicality is not None and self.reject_rate is not None:
            found = self.typicality(x)
            typical = found.tolist()
            unknown |= found <= self.reject_rate
        return map(Prediction, sources, names, best.values.tolist(), probabilities, typical, unknown.tolist())


def check_asked(temperature: float | None, topk: int, threshold: float | None, reject_rate: float | None) -> None:
    """Raise InputError if a number is out of range, or a threshold is given without probabilities."""
    if topk < 1:
        raise InputError(f"topk must be at least 1, got {topk}.")
    for name, value in (("threshold", threshold), ("reject_rate", reject_rate)):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1, got {value}.")
    if threshold is not None and temperature is None:
        raise InputError(f"threshold needs probabilities, and this model has none. {NO_PROBABILITIES}")


def batch_of(transform: Transform, inputs: list[Tensor]) -> Tensor:
    """A batch of transformed inputs, by the transform's ``join`` if sizes vary."""
    return getattr(transform, "join", torch.stack)(inputs)
