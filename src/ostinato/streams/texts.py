"""Texts as samples, and how an encoder sees them."""

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
"""Longer texts are refused: a tokenizer takes gigabytes for them, and no encoder sees more than their beginning."""

_SOME = 1_000
"""Texts of a column that are looked at together."""


class Texts(Split):
    """Rows of a column of texts."""

    modality = "text"

    def __init__(self, column: pa.ChunkedArray, names: Callable[[int], str], rows: np.ndarray, labels: np.ndarray):
        """Keep the rows.

        Args:
            column: the texts.
            names: what to call a row of the column.
            rows: those that belong to the split.
            labels: of each of them.
        """
        self.labels = labels
        self._column, self._names, self._rows = column, names, rows

    def load(self, index: int) -> str:
        """The text of a sample."""
        text = self._column[int(self._rows[index])].as_py()
        if reason := unfit(text):
            raise DataError(f"{self.name(index)}: {reason}.")
        return text

    def name(self, index: int) -> str:  # noqa: D102
        return self._names(int(self._rows[index]))

    def problems(self) -> dict[int, str]:
        """Position -> reason of the texts that cannot be used."""
        found: dict[int, str] = {}
        for start in range(0, len(self._rows), _SOME):  # not all as objects of Python at a time
            texts = self._column.take(pa.array(self._rows[start : start + _SOME])).to_pylist()
            found |= {i: reason for i, text in enumerate(texts, start) if (reason := unfit(text))}
        return found


def is_empty(text: str | None) -> bool:
    """Whether a text says nothing."""
    return not (text and text.strip())


def unfit(text: str | None) -> str | None:
    """The reason why a text cannot be used, if there is one."""
    if text is None or is_empty(text):
        return EMPTY
    if len(text) > MAX_CHARACTERS:
        return f"the text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
    return None


@dataclass(frozen=True)
class TextTransform:
    """A text as token numbers, always the same.

    Attributes:
        tokenization: of the backbone.
    """

    modality = "text"

    tokenization: Tokenization

    def __call__(self, text: str, rng: np.random.Generator | None = None) -> Tensor:  # noqa: ARG002
        """See a text.

        Args:
            text: of any length; its end is cut off where it has more tokens than fit.
            rng: not used; there so that all transforms are called alike.

        Returns:
            (n,) int64.
        """
        return self.tokenization.encode(text)

    def tokens(self, text: str) -> int:
        """Tokens of the text that are seen."""
        return min(self.tokenization.count(text), self.tokenization.length)

    def join(self, texts: list[Tensor]) -> Tensor:
        """Views as one batch (B, N), filled up to the longest."""
        return self.tokenization.join(texts)

    @property
    def longest(self) -> int:
        """Most tokens that are seen of a text."""
        return self.tokenization.length
