"""Checks of a continuation before its model takes the place of the earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ostinato.evaluation.answers import Answers
from ostinato.evaluation.pairing import paired_difference
from ostinato.report.tables import percent
from ostinato.streams import LabeledDataset

if TYPE_CHECKING:
    from ostinato.runs.build import Work

FEWEST, MOST = 5, 50
"""A new class with fewer held-out samples than ``FEWEST`` is also checked on samples that it was learned from; at most
``MOST`` samples of a class are scored."""

_SHOWN = 5
"""Largest number of classes in a message."""


@dataclass(frozen=True)
class Fall:
    """Change of the accuracy on samples of old classes, in fractions.

    Attributes:
        samples: number of samples.
        before: accuracy before.
        after: accuracy after.
        problem: a sentence about a fall that is too large; None for none.
        remark: a sentence about a fall that chance may explain; None for none.
    """

    samples: int
    before: float
    after: float
    problem: str | None
    remark: str | None


def fall_of(before: Answers, after: Answers, names: list[str], max_drop: float) -> Fall | None:
    """Compare the answers to samples of old classes before and after.

    A fall is a problem if it is larger than allowed, and than chance explains: two standard errors of the paired
    difference, see :func:`ostinato.evaluation.pairing.paired_difference`.

    Args:
        before: answers before, all of old classes.
        after: answers after, among them those to the same samples.
        names: of the old classes, by label.
        max_drop: largest fall that is allowed.

    Returns:
        The change; None for fewer than two different samples, which cannot be compared.
    """
    old = np.flatnonzero(after.labels < len(names))
    after = Answers(after.samples[old], after.labels[old], after.predicted[old], after.right[old])
    change = paired_difference([(after, before)])
    if change is None:
        return None
    shares = float(before.right.mean()), float(after.right.mean())
    problem = remark = None
    if -change.mean > max_drop:
        said = (
            f"the accuracy on old classes falls by {percent(-change.mean)} points (± {percent(change.error)}, on "
            f"{change.samples} samples), more than learn.max_drop={max_drop:g}"
        )
        if change.within_noise:
            remark = f"{said[0].upper()}{said[1:]}; so few samples may show this by chance."
        else:
            problem = f"{said}: {_most_fallen(before, after, names)}"
    return Fall(change.samples, *shares, problem, remark)


def _most_fallen(before: Answers, after: Answers, names: list[str]) -> str:
    """Name the classes that lost the most right answers."""
    n = len(names)
    counts = [np.bincount(some.labels, weights=some.right, minlength=n).astype(int) for some in (before, after)]
    of = np.bincount(before.labels, minlength=n)
    lost = counts[0] - counts[1]
    worst = [c for c in np.argsort(-lost, kind="stable")[:_SHOWN].tolist() if lost[c] > 0]
    return ", ".join(f"{names[c]!r} from {counts[0][c]} to {counts[1][c]} of {of[c]} right" for c in worst)


@dataclass(frozen=True)
class _Witnesses:
    """Samples that show whether a new class was learned."""

    name: str
    held_out: int
    samples: LabeledDataset


def learned_nothing(work: Work) -> list[str]:
    """Sentences about the new classes whose accuracy is no higher than chance, one divided by the number of classes.

    Their held-out samples are scored: test and validation samples. Where these are few, samples that the class was
    learned from are scored, too: a class that does not even know these has learned nothing.
    """
    found = list(_witnesses(work))
    if not found:
        return []
    n_seen = work.learner.method.n_seen
    result = work.learner.evaluate([one.samples for one in found])
    return [
        f"the new class {one.name!r} has learned nothing: {right} of {total} samples are right ({_kinds(one)}), no "
        f"more than by chance among {n_seen} classes"
        for one, right, total in zip(found, result.correct, result.totals, strict=True)
        if right * n_seen <= total
    ]


def _kinds(one: _Witnesses) -> str:
    learned = len(one.samples) - one.held_out
    return f"{one.held_out} held out" + (f", {learned} that it was learned from" if learned else "")


def _witnesses(work: Work) -> Iterator[_Witnesses]:
    """Samples of each new class."""
    transform = work.learner.eval_transform
    for i, tests in enumerate(work.tests):
        task = work.stream.task(i)
        further = [] if work.split == "validation" else [task.validation]
        held_out = LabeledDataset.concat([part.with_transform(transform) for part in (tests, *further)])
        train = task.train.with_transform(transform)
        for label, name in zip(task.classes, task.class_names, strict=True):
            some = _of_class(held_out, label, MOST)
            parts = [some] if len(some) >= FEWEST else [some, _of_class(train, label, MOST - len(some))]
            yield _Witnesses(name, len(some), LabeledDataset.concat(parts))


def _of_class(samples: LabeledDataset, label: int, most: int) -> LabeledDataset:
    return samples.subset((samples.labels == label).nonzero().flatten()[:most])
