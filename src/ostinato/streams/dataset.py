"""Labelled samples seen through a transform."""

import copy
import hashlib
import operator
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ostinato.errors import InputError
from ostinato.streams.source import Split

_CHUNK = 64
"""Samples that a thread reads at a time."""

BACKBONES = {"image": "vit_base_patch16_224.augreg_in21k", "text": "bert-base-uncased, or the folder of a text encoder"}
"""Example backbones by modality, for messages."""


class Transform(Protocol):
    """Sample to tensor: random with a generator, deterministic without.

    A transform of samples of varying size also has ``tokens(sample)``, the size of a sample; ``longest``, the largest
    size; and ``join(tensors)``, which makes a batch.

    Attributes:
        modality: of the samples, see :class:`Split`.
    """

    modality: str

    def __call__(self, sample: Any, rng: np.random.Generator | None = None, /) -> Tensor:
        """Transform a sample."""
        ...


class Samples(Protocol):
    """Inputs with their labels, by position or by another key of the data set."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def __getitem__(self, key: Any, /) -> tuple[Tensor, int]:
        """A sample and its label."""
        ...


class LabeledDataset(Dataset[tuple[Tensor, int]]):
    """Labelled rows of a split, seen through a transform.

    Indexing by ``i`` gives the deterministic transform of sample ``i``; indexing by ``(i, draw)`` gives a random
    one, drawn from ``np.random.default_rng([seed, i, draw])``: the same key, the same tensor, in any process.

    Args:
        split: source of the samples.
        rows: positions in the split.
        labels: the stream's label of each row.
        seed: of the random transforms.
        transform: sample to tensor; required before indexing.
    """

    def __init__(
        self, split: Split, rows: np.ndarray, labels: np.ndarray, *, seed: int, transform: Transform | None = None
    ):
        self.labels = torch.as_tensor(labels, dtype=torch.int64)
        self.seed = seed
        self.transform = transform
        self._sizes: list[int] | None = None
        self._splits: tuple[Split, ...] = (split,)
        self._split_of = np.zeros(len(rows), dtype=np.int64)
        self._rows = np.asarray(rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index, draw = key if isinstance(key, tuple) else (key, None)
        index = self._position(index)
        if self.transform is None:
            raise InputError("A data set needs a transform before it is read: call with_transform(EvalTransform(224)).")
        rng = None if draw is None else np.random.default_rng([self.seed, index, draw])
        return self.transform(self.raw(index), rng), int(self.labels[index])

    def raw(self, index: int) -> Any:
        """Sample ``index`` before the transform: an RGB image at its original size, or a text."""
        index = self._position(index)
        return self._splits[self._split_of[index]].load(int(self._rows[index]))

    def with_transform(self, transform: Transform) -> "LabeledDataset":
        """A shallow copy with another transform.

        Raises:
            InputError: if the transform takes samples of another modality.
        """
        if transform.modality != self.modality:
            raise InputError(
                f"These data hold {self.modality}s, but the backbone takes {transform.modality}s: choose another "
                f"backbone, such as {BACKBONES[self.modality]}."
            )
        other = copy.copy(self)
        other.transform, other._sizes = transform, None
        return other

    @property
    def modality(self) -> str:
        """Kind of the samples: "image" or "text"."""
        return self._splits[0].modality

    def sizes(self) -> list[int] | None:
        """Tokens of each sample under the transform; None where all have as many."""
        tokens = getattr(self.transform, "tokens", None)
        if tokens is not None and self._sizes is None:  # needed in every epoch, and after every task
            self._sizes = [tokens(self.raw(i)) for i in range(len(self))]
        return self._sizes

    @property
    def longest(self) -> int:
        """Maximum tokens of a sample under the transform, where sizes differ."""
        return self.transform.longest  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Join samples into a batch: inputs (B, ...), padded where sizes differ, and labels (B,)."""
        inputs = [x for x, _ in samples]
        join = getattr(self.transform, "join", torch.stack)
        return join(inputs), torch.tensor([y for _, y in samples])

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> "LabeledDataset":
        """A copy with the samples at these positions, in the given order."""
        chosen = np.asarray(indices, dtype=np.int64)
        other = copy.copy(self)
        other.labels = self.labels[torch.from_numpy(chosen)]
        other._split_of = self._split_of[chosen]
        other._rows = self._rows[chosen]
        other._sizes = None if self._sizes is None else [self._sizes[i] for i in chosen]
        return other

    @staticmethod
    def concat(parts: "list[LabeledDataset]") -> "LabeledDataset":
        """Concatenate data sets with the same transform (or none); the first gives the seed.

        Raises:
            InputError: if there are no parts, or their transforms differ.
        """
        if not parts:
            raise InputError("concat needs at least one part, but the list is empty.")
        other = copy.copy(parts[0])
        if any(part.transform != other.transform for part in parts):
            raise InputError("concat needs parts with the same transform: call with_transform() on the result.")
        starts = np.cumsum([0, *(len(part._splits) for part in parts)])
        other.labels = torch.cat([part.labels for part in parts])
        other._splits = tuple(split for part in parts for split in part._splits)
        other._split_of = np.concatenate([part._split_of + n for part, n in zip(parts, starts, strict=False)])
        other._rows = np.concatenate([part._rows for part in parts])
        known = [part._sizes for part in parts]
        other._sizes = None if None in known else [n for sizes in known if sizes is not None for n in sizes]
        return other

    def names(self) -> list[str]:
        """The name of each sample, in order."""
        pairs = zip(self._split_of, self._rows, strict=True)
        return [self._splits[split].name(int(row)) for split, row in pairs]

    def fingerprints(self) -> np.ndarray:
        """Content hash of each sample, (n,) uint64, see :meth:`Split.fingerprint`."""

        def read(rows: range) -> list[int]:
            return [self._splits[self._split_of[i]].fingerprint(int(self._rows[i])) for i in rows]

        parts = [range(i, min(i + _CHUNK, len(self))) for i in range(0, len(self), _CHUNK)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # reading files is mostly waiting
            return np.array([n for part in pool.map(read, parts) for n in part], np.uint64)

    def digest(self) -> str:
        """SHA-256 over the sorted names, labels and contents; the order of the samples does not matter."""
        samples = zip(self.names(), self.labels.tolist(), self.fingerprints().tolist(), strict=True)
        lines = sorted(f"{name}\t{label}\t{content:016x}\n" for name, label, content in samples)
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def class_counts(self) -> dict[int, int]:
        """Samples per label, by label; labels without any are left out."""
        return dict(sorted(Counter(self.labels.tolist()).items()))

    def _position(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index % len(self)
