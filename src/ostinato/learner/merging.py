"""Join what several learners have learned, without their data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from ostinato.errors import InputError
from ostinato.learner.learner import Learner
from ostinato.lookup import file_of, methods
from ostinato.methods.base import Additive, Method


def merge(*learned: Learner | str | Path, tell: Callable[[str], None] | None = None, **where: Any) -> Learner:
    """Join what several learners have learned, to the same as if one had learned everything.

    Classes of one name become one class, all others are appended in their order. Only the sums that a method keeps are
    added, so that nobody needs the data of another. The method must say how (:class:`ostinato.methods.base.Additive`).

    Args:
        learned: runs, folders of saved learners, or learners, of which the first takes the others in.
        tell: called with sentences about samples that were learned twice.
        where: arguments of :meth:`Learner.load` for those that are folders.

    Returns:
        A learner that can predict, go on learning, and be saved.

    Raises:
        InputError: if there are fewer than two, if the method's state does not add, or if methods, options or backbones
            differ.
        DataError: if a folder holds no learner.
    """
    if len(learned) < 2:
        raise InputError(f"merge: give at least two runs, got {len(learned)}.")
    learners = [one if isinstance(one, Learner) else Learner.load(one, **where) for one in learned]
    first = learners[0]
    for number, other in enumerate(learners[1:], start=2):
        _check(first, other, number)
        twice = len(np.intersect1d(first.used, other.used))
        _join(first, other)
        if twice and tell is not None:
            tell(
                f"Run {number} has used {twice} samples that were used before it. Where both learned from a sample, "
                "it counts twice."
            )
    return first


def _check(first: Learner, other: Learner, number: int) -> None:
    """Make sure that the statistics of two learners are of the same things.

    Raises:
        InputError: naming what differs.
    """
    if not isinstance(first.method, Additive):
        raise InputError(
            f"merge: the state of {first.method.name} does not add, as it is no sum over samples. "
            f"Methods that can be merged: {', '.join(name for name, cls in methods().items() if _adds(cls))}."
        )
    for key, here, there in _settings(first, other):
        if here != there:
            raise InputError(
                f"merge: {key} is {here!r} in the first run and {there!r} in run {number}, so that their statistics do "
                "not add. Learn both with the same method, options and backbone."
            )
    for learner, name in ((first, "the first run"), (other, f"run {number}")):
        if not learner.class_names:
            raise InputError(f"merge: {name} has learned nothing.")
        if learner.label_groups is not None:
            raise InputError(f"merge: {name} counts classes as one answer (data.alike), which cannot be merged.")


def _adds(method: type[Method]) -> bool:
    return issubclass(method, Additive)


def _settings(first: Learner, other: Learner) -> Iterator[tuple[str, Any, Any]]:
    """What two learners must agree in: a name, and the value of each."""
    yield "the method", first.method.name, other.method.name
    mine, theirs = file_of(type(first.method)), file_of(type(other.method))
    yield "the hash of the method's file", mine and mine.sha256, theirs and theirs.sha256
    for key, value in first.options.items():
        yield f"method.{key}", value, other.options.get(key)
    mine, theirs = first.origin, other.origin
    yield "the hash of the backbone's weights", mine and mine.sha256, theirs and theirs.sha256
    here, there = (one.method.backbone.describe() for one in (first, other))
    for key, value in here.items():
        yield f"the backbone's {key}", value, there.get(key)
    yield "data.crop", first.crop, other.crop
    yield "precision", first.precision, other.precision


def _join(first: Learner, other: Learner) -> None:
    """Add the other learner's state, class names and fingerprints to the first one's."""
    numbers = {name: label for label, name in enumerate(first.class_names)}
    labels = [numbers.setdefault(name, len(numbers)) for name in other.class_names]
    new = torch.tensor([label >= first.method.n_seen for label in labels])
    sizes = torch.stack([part.sum() for part in new.split(other.method.task_sizes.tolist())])
    method, places = first.method, torch.tensor(labels, device=first.method.device)
    cast(Additive, method).merge(other.method, places)
    method.task_sizes = torch.cat([method.task_sizes, sizes[sizes > 0].to(method.device)])
    if first.samples is not None and other.samples is not None:
        first.samples += [0] * (len(numbers) - len(first.samples))
        for label, n in zip(labels, other.samples, strict=True):
            first.samples[label] += n
    else:
        first.samples = None
    if first.certainty is not None and other.certainty is not None:
        first.certainty.merge(other.certainty, places)
    else:
        first.certainty = None
    first.held_out = []
    first.class_names = list(numbers)
    first.used = np.union1d(first.used, other.used)
