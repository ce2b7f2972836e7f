"""Classes of a source that were learned before: their names, and more samples of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ostinato.errors import DataError
from ostinato.streams.dataset import LabeledDataset
from ostinato.streams.source import Source, Split, listed, plain_name

Twins = Literal["refuse", "known", "new"]
"""Meaning of a name that is nearly a known one."""


def known_labels(names: Sequence[str], known: Sequence[str], twins: Twins, where: str) -> dict[str, int]:
    """Labels of the names that are known.

    Args:
        names: of the classes of a source.
        known: names of the classes learned, by label.
        twins: meaning of a name that differs from a known one in case, spaces or forms of characters alone.
        where: name of the source, for messages.

    Raises:
        DataError: if such a name must be refused, or stands for two known classes or beside the known name itself.
    """
    label_of = {name: label for label, name in enumerate(known)}
    found = {name: label_of[name] for name in names if name in label_of}
    alike: dict[str, list[str]] = {}
    for name in known:
        alike.setdefault(plain_name(name), []).append(name)
    near = {name: alike[plain_name(name)] for name in names if name not in label_of and plain_name(name) in alike}
    if not near or twins == "new":
        return found
    if twins == "refuse":
        pairs = [f"{name!r} beside {' and '.join(map(repr, others))}" for name, others in near.items()]
        raise DataError(
            f"A class needs a name of its own, but {where} brings names that are nearly known ones:{listed(pairs)}\n"
            "Rename the new ones, or choose: data.twins=known learns their samples as the known classes, "
            "data.twins=new as other classes."
        )
    for name, others in near.items():
        if len(others) > 1 or label_of[others[0]] in found.values():
            raise DataError(
                f"data.twins=known: {name!r} of {where} must stand for one class, but "
                f"{' and '.join(map(repr, others))} {'are' if len(others) > 1 else 'is'} there, too. Rename it."
            )
        found[name] = label_of[others[0]]
    return found


class KnownSamples:
    """Rows of a source that are more samples of known classes.

    Args:
        source: the samples.
        classes: known label and position in the source of each class, sorted.
        used: sorted fingerprints of samples to leave out; None for none.

    Attributes:
        labels: known labels of the classes with a training sample.
        places: positions of these classes in the source.
        train: training rows of each.
        test: test rows of each; empty lists without a test split.
        repeated: number of training samples left out.
    """

    def __init__(self, source: Source, classes: list[tuple[int, int]], used: np.ndarray | None) -> None:
        self.labels: list[int] = []
        self.places: list[int] = []
        self.train: list[np.ndarray] = []
        self.test: list[np.ndarray] = []
        self.repeated = 0
        for label, place in classes:
            rows = np.flatnonzero(source.train.labels == place)
            kept = _unused(source.train, rows, used)
            self.repeated += len(rows) - len(kept)
            if not len(kept):
                continue
            self.labels.append(label)
            self.places.append(place)
            self.train.append(kept)
            tests = np.empty(0, np.int64)
            if source.test is not None:
                tests = _unused(source.test, np.flatnonzero(source.test.labels == place), used)
            self.test.append(tests)


def _unused(split: Split, rows: np.ndarray, used: np.ndarray | None) -> np.ndarray:
    """Rows whose fingerprints are not among those used."""
    if used is None or not len(used) or not len(rows):
        return rows
    found = LabeledDataset(split, rows, np.zeros(len(rows)), seed=0).fingerprints()
    return rows[~np.isin(found, used)]
