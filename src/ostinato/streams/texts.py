"""Texts as samples, and their tokenisation for an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from torch import Tensor

from ostinato.errors import DataError
from ostinato.streams.source import Split

if TYPE_CHECKING:
    from ostinato.backbones import Tokenization

EMPTY = "the text is empty"

MAX_CHARACTERS = 4_000_000
"""Maximum characters of a text: tokenizers take gigabytes for longer ones, and encoders see only their beginning."""

_CHUNK = 1_000
"""Texts of a column that are checked together."""


class Texts(Split):
    """Rows of a column of texts; ``names`` gives the name of a row of the column."""

    modality = "text"

    def __init__(self, column: pa.ChunkedArray, names: Callable[[int], str], rows: np.ndarray, labels: np.ndarray):
        self.labels = labels
        self._column, self._names, self._rows = column, names, rows

    def load(self, index: int) -> str:  # noqa: D102
        text = self._column[int(self._rows[index])].as_py()
        if reason := unfit(text):
            raise DataError(f"{self.name(index)}: {reason}.")
        return text

    def name(self, index: int) -> str:  # noqa: D102
        return self._names(int(self._rows[index]))

    def problems(self) -> dict[int, str]:
        """Position -> reason of the texts that cannot be used."""
        found: dict[int, str] = {}
        for start in range(0, len(self._rows), _CHUNK):  # not all as objects of Python at a time
            texts = self._column.take(pa.array(self._rows[start : start + _CHUNK])).to_pylist()
            found |= {i: reason for i, text in enumerate(texts, start) if (reason := unfit(text))}
        return found


def is_empty(text: str | None) -> bool:
    """Whether a text is missing or blank."""
    return not (text and text.strip())


def unfit(text: str | None) -> str | None:
    """Reason why a text cannot be used; None if it can."""
    if text is None or is_empty(text):
        return EMPTY
    if len(text) > MAX_CHARACTERS:
        return f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
    return None


@dataclass(frozen=True)
class TextTransform:
    """Tokenise a text, deterministically.

    Attributes:
        tokenization: of the backbone.
    """

    modality = "text"

    tokenization: Tokenization

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> Tensor:  # noqa: ARG002
        """Token numbers (n,) int64 of a text, cut to the maximum; ``rng``, which other transforms use, is ignored."""
        return self.tokenization.encode(text)

    def tokens(self, text: str) -> int:
        """Number of tokens of a text, at most :attr:`longest`."""
        return min(self.tokenization.count(text), self.tokenization.length)

    def join(self, texts: list[Tensor]) -> Tensor:
        """Join token numbers into a batch (B, N), padded to the longest."""
        return self.tokenization.join(texts)

    @property
    def longest(self) -> int:
        """Maximum number of tokens of a text."""
        return self.tokenization.length
