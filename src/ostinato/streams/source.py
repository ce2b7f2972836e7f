"""Sources: labelled samples in a training and a test split, before an order or tasks are chosen."""

import hashlib
import re
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ostinato.errors import DataError, InputError
from ostinato.paths import open_file

HELD_OUT = 0.2
"""Share of each class that becomes the test split where a source brings none."""


class Split:
    """One split of a source: raw samples and their labels.

    A subclass sets ``labels`` ((n,) int64, positions in ``Source.class_names``) and defines ``load`` and
    ``name``.

    Attributes:
        modality: "image" where samples are RGB images, "text" where they are strings.
    """

    modality: str = "image"
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Any:
        """Sample ``index``: a decoded RGB image at its original size, or a text.

        Raises:
            DataError: if it cannot be read; the message names the file or row.
        """
        raise NotImplementedError(f"{type(self).__name__} must define load().")

    def name(self, index: int) -> str:
        """Name of sample ``index``: a path inside the source, or a file and row.

        It is unique within the source and the same on every machine.
        """
        raise NotImplementedError(f"{type(self).__name__} must define name().")

    def fingerprint(self, index: int) -> int:
        """Content hash of sample ``index``: 8 bytes of BLAKE2b as an integer, computed once; names do not matter.

        Raises:
            DataError: if the sample cannot be read.
        """
        known: dict[int, int] = self.__dict__.setdefault("_fingerprints", {})
        if index not in known:
            known[index] = int.from_bytes(_blake2b(self._content(index)))
        return known[index]

    def _content(self, index: int) -> bytes | Path:
        """Content to hash: a file or its bytes where there is one, else size and pixels, or the text."""
        sample = self.load(index)
        if isinstance(sample, str):
            return sample.encode(errors="surrogatepass")
        return f"{sample.size} ".encode() + sample.tobytes()


def _blake2b(content: bytes | Path) -> bytes:
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=8).digest()
    try:
        with open_file(content) as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).digest()
    except OSError as error:
        raise DataError(f"{content} cannot be read ({error.strerror}).") from error


class Rows(Split):
    """Some rows of another split."""

    def __init__(self, parent: Split, rows: np.ndarray):
        self.parent = parent
        self.rows = rows
        self.labels = parent.labels[rows]
        self.modality = parent.modality

    def load(self, index: int) -> Any:  # noqa: D102
        return self.parent.load(int(self.rows[index]))

    def name(self, index: int) -> str:  # noqa: D102
        return self.parent.name(int(self.rows[index]))

    def fingerprint(self, index: int) -> int:  # noqa: D102
        return self.parent.fingerprint(int(self.rows[index]))


class Joined(Split):
    """Concatenation of splits of one modality, with new labels and a prefix of the sample names of each part."""

    def __init__(self, parts: Sequence[Split], prefixes: Sequence[str], labels: Sequence[np.ndarray]):
        self.labels = np.concatenate(labels)
        self.modality = parts[0].modality
        self._parts, self._prefixes = tuple(parts), tuple(prefixes)
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def _place(self, index: int) -> tuple[int, int]:
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return part, index - int(self._starts[part])

    def load(self, index: int) -> Any:  # noqa: D102
        part, i = self._place(index)
        return self._parts[part].load(i)

    def name(self, index: int) -> str:  # noqa: D102
        part, i = self._place(index)
        return f"{self._prefixes[part]}/{self._parts[part].name(i)}"

    def fingerprint(self, index: int) -> int:  # noqa: D102
        part, i = self._place(index)
        return self._parts[part].fingerprint(i)


@dataclass
class Source:
    """Labelled samples, from which a stream of tasks is cut.

    Attributes:
        name: of the source in records.
        class_names: in natural order; a label is a position in this list.
        train: the training samples.
        test: the test samples; None where there are none.
        augment: recommended training augmentation: "photo", "glyph" or "none".
        task_names: the class names of each task, where the layout has a folder per task.
        skipped: "path: reason" of files left out under ``on_error="skip"``.
        notes: decisions made for the user that are worth reporting.
        test_was_cut: whether ``test`` was set aside from the training samples because the data bring none.
        label_groups: group number of each label; labels of one group count as the same answer (the stars of two shops,
            say). None where all classes differ.
    """

    name: str
    class_names: list[str]
    train: Split
    test: Split | None
    augment: str = "photo"
    task_names: list[list[str]] | None = None
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    test_was_cut: bool = False
    label_groups: list[int] | None = None

    @property
    def modality(self) -> str:
        """Kind of the samples: "image" or "text"."""
        return self.train.modality


def shuffled(rows: np.ndarray, class_name: str, seed: int, salt: int = 0) -> np.ndarray:
    """Permute the rows of one class, depending on its name, the seed and the salt alone.

    Neither the class order nor other classes matter; the salt separates permutations for different purposes.
    """
    rng = np.random.default_rng([seed, zlib.crc32(class_name.encode(errors="surrogateescape")), salt])
    return rows[rng.permutation(len(rows))]


def without(split: Split, bad: Iterable[int]) -> Split:
    """Drop the samples at these positions."""
    rows = np.delete(np.arange(len(split)), list(bad))
    return split if len(rows) == len(split) else Rows(split, rows)


def held_out_count(n: int, fraction: float) -> int:
    """Number of held-out samples of a class of ``n``: ``floor(fraction * n)``, but 1 where 2 exist.

    With ``n >= 2`` and ``fraction > 0`` it is at least 1, and less than ``n``.
    """
    if fraction == 0 or n < 2:
        return 0
    return min(max(1, int(fraction * n + 1e-9)), n - 1)  # 0.29 * 100 is 28.999...


def allotted(counts: Sequence[int], limit: int) -> list[int]:
    """Divide a limit of samples, at least the number of classes, among the classes of a task.

    Shares are in proportion to the counts, rounded by largest remainders, and at least 1 where a class has any.
    """
    total = sum(counts)
    if total <= limit:
        return list(counts)
    exact = [limit * n / total for n in counts]
    kept = [max(1, int(share)) if n else 0 for n, share in zip(counts, exact, strict=True)]
    by_rest = sorted(range(len(counts)), key=lambda i: kept[i] - exact[i])
    for i in by_rest[: max(0, limit - sum(kept))]:
        kept[i] += 1
    # The minimum of one sample per class may exceed the limit: the largest class gives one back.
    while sum(kept) > limit:
        kept[kept.index(max(kept))] -= 1
    return kept


def hold_out(split: Split, class_names: Sequence[str], *, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Hold out a fraction of each class, drawn by the seed; both parts are in the order of ``split``."""
    apart = np.zeros(len(split), dtype=bool)
    for label, name in enumerate(class_names):
        rows = np.flatnonzero(split.labels == label)
        apart[shuffled(rows, name, seed, salt=1)[: held_out_count(len(rows), fraction)]] = True
    return Rows(split, np.flatnonzero(~apart)), Rows(split, np.flatnonzero(apart))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key under which "img2" comes before "img10"; case matters only between equal names."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], name


def plain_name(name: str) -> str:
    """Normalise a class name: without case, surplus spaces and variant forms of characters."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def listed(items: Iterable[str], limit: int = 10) -> str:
    """Format the first items for an error message, one an indented line, with the number of those left out."""
    items = list(items)
    lines = [f"\n  {item}" for item in items[:limit]]
    if len(items) > limit:
        lines.append(f"\n  ... and {len(items) - limit} more")
    return "".join(lines)


def refuse(where: str, problems: Sequence[str], total: int, modality: str = "image") -> DataError:
    """Make one error for all samples that cannot be used, each given as "name: reason"."""
    return DataError(
        f"Every {modality} must be readable, but {len(problems)} of {total} in {where} cannot be used:"
        f"{listed(problems)}\nRepair or remove them, or set data.on_error=skip to go on without them."
    )


def check_on_error(on_error: str) -> None:
    """Raise an InputError unless ``on_error`` is "raise" or "skip"."""
    if on_error not in ("raise", "skip"):
        raise InputError(f"on_error must be 'raise' (stop and list bad images) or 'skip', not {on_error!r}.")
