"""Failures of loaded tensors, told apart from those of an input."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ostinato import crash
from ostinato.errors import DataError, OstinatoError
from ostinato.learner.predicting import batch_of
from ostinato.streams import Transform


@contextmanager
def explaining_damage(
    name: str, loaded_from: Path | None, transform: Transform, scores: Callable[[Tensor], Any]
) -> Iterator[None]:
    """Raise DataError for a failure of loaded tensors, which then cannot score a blank input either.

    Args:
        name: of the method, for the message.
        loaded_from: folder of the tensors; None leaves every error as it is.
        transform: of inputs at test time.
        scores: from a batch of transformed inputs to scores.
    """
    try:
        yield
    except OstinatoError:
        raise
    except Exception as error:  # of any kind: methods use tensors of wrong shapes anywhere
        if loaded_from is None or _scores_something(transform, scores):
            raise
        raise DataError(
            f"{loaded_from}: the learned tensors do not fit {name}. Restore the artifact from a copy. If it is whole: "
            f"{crash.report(error, sys.argv)}"
        ) from error


def _scores_something(transform: Transform, scores: Callable[[Tensor], Any]) -> bool:
    sample: Any = "a" if transform.modality == "text" else Image.new("RGB", (8, 8))
    try:
        with torch.inference_mode():
            scores(batch_of(transform, [transform(sample)]))
    except Exception:  # of any kind, as above
        return False
    return True
