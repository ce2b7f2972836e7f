"""Answers of a run to each test sample, for comparisons of two runs on the same samples."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ostinato.errors import DataError
from ostinato.files import read_regular, write_bytes

if TYPE_CHECKING:
    from ostinato.evaluation.evaluator import Evaluation
    from ostinato.streams import LabeledDataset

MOST_SAMPLES = 2**20
"""Largest number of samples in a file. Of more, those with the smallest fingerprints are kept, the same in all runs."""

_DTYPES = {"samples": "<u8", "labels": "<i4", "predicted": "<i4", "right": "|b1"}
_ROW = sum(np.dtype(dtype).itemsize for dtype in _DTYPES.values())
_SLACK = 4096
"""Upper bound on the bytes of an archive beside its arrays."""


@dataclass(frozen=True)
class Answers:
    """Answers to test samples, in ascending order of their fingerprints.

    Attributes:
        samples: fingerprints (n,) uint64, see :meth:`ostinato.streams.LabeledDataset.fingerprints`.
        labels: labels (n,) int32.
        predicted: labels (n,) int32 with the highest score.
        right: whether each answer is right, (n,) bool; labels of one group are the same answer.
    """

    samples: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def whole(self) -> bool:
        """Whether all scored samples are included."""
        return len(self) < MOST_SAMPLES


def answers_of(groups: Sequence[LabeledDataset], result: Evaluation) -> Answers:
    """Answers of an evaluation with the fingerprints of the samples.

    Args:
        groups: evaluated data sets.
        result: result of :func:`ostinato.evaluation.evaluator.evaluate`.
    """
    samples = np.concatenate([group.fingerprints() for group in groups])
    labels = np.concatenate([group.labels.numpy() for group in groups])
    predicted, right = np.array(result.answers), np.array(result.right, bool)
    order = np.lexsort((predicted, labels, samples))[:MOST_SAMPLES]
    return Answers(samples[order], labels[order].astype(np.int32), predicted[order].astype(np.int32), right[order])


def write_answers(path: Path, answers: Answers) -> None:
    """Write answers atomically as an npz file, with 17 bytes per sample."""
    file = io.BytesIO()
    np.savez(file, **{name: getattr(answers, name).astype(dtype) for name, dtype in _DTYPES.items()})
    write_bytes(path, file.getvalue())


def read_answers(path: Path) -> Answers:
    """Read a file of :func:`write_answers`. It is untrusted: nothing is unpickled, and all sizes are checked.

    Raises:
        DataError: if the file is missing, damaged, or of another kind.
    """
    data = read_regular(path, MOST_SAMPLES * _ROW + _SLACK)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if list(members) != list(_DTYPES):
                raise ValueError(f"it holds {', '.join(members)[:80]!r}")
            parts = {name: _array(archive, member, _DTYPES[name]) for name, member in members.items()}
    except Exception as error:  # of zipfile and numpy, which raise errors of many kinds
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise DataError(
            f"{path} cannot be read as the answers of a run ({type(error).__name__}: {reason}). Restore it from a "
            "copy, or remove it: the run's other results do not need it."
        ) from None
    answers = Answers(**parts)
    sizes = {len(part) for part in parts.values()}
    if len(sizes) > 1 or (answers.samples[1:] < answers.samples[:-1]).any():
        raise DataError(
            f"{path} must hold one answer per sample, in the order of the fingerprints. Restore it from a copy."
        )
    return answers


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: str) -> np.ndarray:
    """Read an uncompressed array (n,) of an archive, with its checksum.

    Raises:
        ValueError: if it is compressed, or of another version, shape or type.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{member.filename[:80]!r} is compressed")
    file = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"{member.filename[:80]!r} has another version")
    shape, _, found = np.lib.format.read_array_header_1_0(file)
    values = file.read()
    wanted = np.dtype(dtype)
    if found != wanted or len(shape) != 1 or len(values) != shape[0] * wanted.itemsize:
        raise ValueError(f"{member.filename[:80]!r} has shape {shape} of {found} in {len(values)} bytes")
    return np.frombuffer(values, wanted)
