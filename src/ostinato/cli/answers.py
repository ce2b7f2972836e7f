"""Predictions as text, CSV or JSON."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ostinato.errors import DataError
from ostinato.printing import say, say_json

if TYPE_CHECKING:
    from ostinato.learner import Prediction
    from ostinato.runs.scoring import UnusableInput

FORMS = ("text", "csv", "jsonl")
"""Forms in which predictions are printed one by one."""

_COLUMNS = ("source", "answer", "unknown", "typicality", "error")


class Printer:
    """Prints predictions and the errors of unusable inputs.

    Args:
        form: one of :data:`FORMS`, or "json" for a list of all predictions at the end.
        n_classes: classes per prediction.
    """

    def __init__(self, form: str, n_classes: int) -> None:
        self.form, self.n_classes = form, n_classes
        self.predictions: list[dict[str, Any]] = []
        if form == "csv":
            each = ("class", "probability", "score")
            self._row(*_COLUMNS, *(f"{name}_{i}" for i in range(1, n_classes + 1) for name in each))

    def show(self, answer: Prediction | UnusableInput) -> None:
        """Print a prediction or an error; a text has no line for an error."""
        if isinstance(answer, DataError):
            self._show_error(answer)
        elif self.form == "text":
            say(f"{answer.source}: {_best(answer)}")
        elif self.form == "csv":
            probabilities = answer.probabilities or [None] * len(answer.classes)
            each = zip(answer.classes, probabilities, answer.scores, strict=True)
            unknown = str(answer.unknown).lower()
            self._row(answer.source, answer.answer, unknown, answer.typicality, None, *(v for one in each for v in one))
        elif self.form == "jsonl":
            say_json(asdict(answer) | {"answer": answer.answer})
        else:
            self.predictions.append(asdict(answer) | {"answer": answer.answer})

    def _show_error(self, error: UnusableInput) -> None:
        if self.form == "csv":
            self._row(error.source, None, None, None, error.reason, *[None] * (3 * self.n_classes))
        elif self.form == "jsonl":
            say_json({"source": error.source, "error": error.reason})

    def close(self) -> None:
        """Print what is printed at the end."""
        if self.form == "json":
            say_json(self.predictions)

    def _row(self, *cells: object) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        say(text.getvalue())


def _best(prediction: Prediction) -> str:
    if prediction.probabilities is None:
        values = [f"{score:.3f}" for score in prediction.scores]
    else:
        values = [f"{100 * probability:.1f}%" for probability in prediction.probabilities]
    best = "  ".join(f"{name} {value}" for name, value in zip(prediction.classes, values, strict=True))
    return f"{prediction.answer}, nearest {best}" if prediction.unknown else best
