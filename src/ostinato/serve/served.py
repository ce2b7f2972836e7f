"""The model that answers, replaced when another one is on the disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ostinato import artifact
from ostinato.errors import InputError, OstinatoError
from ostinato.files import sha256_of
from ostinato.interop import ExportedModel
from ostinato.learner import Learner, artifact_folder
from ostinato.runs.scoring import load_model
from ostinato.serve.batching import Answer, Given

_Stamp = tuple[int, int, int]
"""Number, time of change and size of a file."""


@dataclass(frozen=True)
class Current:
    """A loaded model.

    Attributes:
        model: that predicts.
        class_names: that it knows.
        revision: beginning of the SHA-256 of its description, or of the exported file.
        stamp: of that file when loading began; None if it was not there.
    """

    model: Learner | ExportedModel
    class_names: list[str]
    revision: str
    stamp: _Stamp | None


class Served:
    """The newest model of a run, an artifact folder or an exported file.

    Args:
        path: of the run, folder or file.
        where: arguments of :func:`ostinato.runs.scoring.load_model`.

    Attributes:
        current: the model that answers.
        loads: number of models loaded.
        problem: reason why the model on the disk is not the one that answers; None if it is.

    Raises:
        InputError: if the model is one of texts, and as ``load_model``.
        DataError: as ``load_model``.
    """

    def __init__(self, path: str | Path, **where: Any) -> None:
        self.path, self.where = Path(path), where
        self.problem: str | None = None
        self.loads = 0
        self.current = self._load()

    def predict(self, images: Sequence[Given], topk: int, reject_rate: float | None = None) -> Answer:
        """Predictions of image files by the current model, in batches; with typicalities if a rate is given."""
        current = self.current
        made = current.model.predictions(images, topk=topk, reject_rate=reject_rate)
        return Answer(list(made), current.revision)

    def check(self, topk: int, threshold: float | None, reject_rate: float | None) -> None:
        """Raise InputError unless the current model can answer so."""
        self.current.model.predictions([], topk=topk, threshold=threshold, reject_rate=reject_rate)

    def refresh(self) -> bool:
        """Load the model on the disk if it is another one; return whether it was loaded.

        A model that cannot be loaded, such as one that is being replaced, leaves the current one in place.
        """
        try:
            if _stamp(self._file()) == self.current.stamp:
                self.problem = None
                return False
            self.current = self._load()
        except (OstinatoError, OSError) as error:
            self.problem = str(error)
            return False
        self.problem = None
        return True

    def _file(self) -> Path:
        """The file that changes with the model."""
        return self.path if self.path.is_file() else artifact_folder(self.path) / artifact.ABOUT

    def _load(self) -> Current:
        try:  # before the model is read, so that a later change is seen
            file = self._file()
            stamp, revision = _stamp(file), sha256_of(file)[:12]
        except (OstinatoError, OSError):  # the loading says what is wrong
            stamp, revision = None, "unknown"
        model = load_model(self.path, **self.where)
        if isinstance(model, Learner) and model.method.backbone.modality != "image":
            raise InputError(f"serve: the model must be one of images, but {self.path} learned texts.")
        self.loads += 1
        return Current(model, list(model.class_names), revision, stamp)


def _stamp(file: Path) -> _Stamp:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size
