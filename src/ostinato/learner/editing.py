"""Changes of the classes of a learner: rename, remove, merge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ostinato.errors import InputError, did_you_mean
from ostinato.learner.certainty import forget
from ostinato.learner.learner import Learner
from ostinato.records import ArtifactRecord
from ostinato.streams import LabeledDataset
from ostinato.streams.source import plain_name
from ostinato.training.callbacks import Callback

PLAIN = "its covariance of plain features"
"""Sum over the samples of all classes that is kept for unknown inputs."""

FEWEST = 2
"""Classes that must stay, to have something to tell apart."""


@dataclass(frozen=True)
class LearnedClass:
    """A class of a learner.

    Attributes:
        name: of the class.
        task: number of the task that learned it first, from 1.
        samples: training samples so far; None if they were not counted.
    """

    name: str
    task: int
    samples: int | None


def classes_of(about: ArtifactRecord) -> list[LearnedClass]:
    """List the classes of a saved learner by label."""
    tasks = np.repeat(np.arange(len(about.task_sizes)) + 1, about.task_sizes).tolist()
    samples = about.samples or [None] * len(tasks)
    return [LearnedClass(*one) for one in zip(about.class_names, tasks, samples, strict=True)]


def rename_class(learner: Learner, old: str, new: str) -> None:
    """Give a class another name.

    Raises:
        InputError: if there is no such class, or the new name is empty, padded, or nearly that of another class.
    """
    label = _label(learner, old)
    if not new or new != new.strip():
        raise InputError(f"rename: the new name must have a character, and no spaces around it, got {new!r}.")
    for name in learner.class_names:
        if name != old and plain_name(name) == plain_name(new):
            same = "is" if name == new else "is nearly"
            raise InputError(
                f"rename: {new!r} {same} the name of another class, {name!r}. 'merge' makes one class of both."
            )
    learner.class_names[label] = new


def remove_class(learner: Learner, name: str, samples: LabeledDataset | None = None) -> str | None:
    """Remove a class, which is never predicted again.

    Sums of the class alone are dropped. Sums over all classes keep its share, unless all its samples are given.

    Args:
        learner: of a method in closed form.
        name: of the class.
        samples: all training samples of the class, to subtract their share and to forget their fingerprints.

    Returns:
        Sums in which the samples stay, in words; None if nothing of them is left.

    Raises:
        InputError: if there is no such class, only two are left, the method cannot, or the samples are others.
    """
    label, n = _label(learner, name), len(learner.class_names)
    _check_alike(learner, "remove")
    if n <= FEWEST:
        raise InputError(f"remove: at least {FEWEST} classes must stay, but there are {n}.")
    shared = [] if learner.method.shares is None else [learner.method.shares]
    if learner.certainty is not None:
        shared.append(PLAIN)
    if samples is not None:
        own = samples.subset(np.arange(len(samples)))
        own.labels = torch.full((len(own),), label)
        if learner.method.shares is not None:
            learner.update_from(own, learner.method.forget, Callback())
        if learner.certainty is not None:
            forget(learner.certainty, learner, own, label)
    _relabel(learner, gone=label, into=None)
    if samples is not None:
        learner.used = np.setdiff1d(learner.used, samples.fingerprints())
    return " and ".join(shared) if samples is None and shared else None


def merge_classes(learner: Learner, name: str, other: str) -> None:
    """Join another class into a class, to the same as if the samples of both had been learned under its name.

    Raises:
        InputError: if there is no such class, both are the same, only two are left, or the method cannot.
    """
    label, gone, n = _label(learner, name), _label(learner, other), len(learner.class_names)
    _check_alike(learner, "merge")
    if label == gone:
        raise InputError(f"merge: two classes must be given, got {name!r} twice.")
    if n <= FEWEST:
        raise InputError(f"merge: at least {FEWEST} classes must stay, but there are {n}.")
    _relabel(learner, gone, into=label)


def _label(learner: Learner, name: str) -> int:
    if name not in learner.class_names:
        raise InputError(f"There is no class {name!r}. {did_you_mean(name, learner.class_names)}")
    return learner.class_names.index(name)


def _check_alike(learner: Learner, action: str) -> None:
    if learner.label_groups is not None:
        raise InputError(f"{action}: this learner counts classes as one answer (data.alike), which must stay as it is.")


def _relabel(learner: Learner, gone: int, into: int | None) -> None:
    """Take away a label, whose class is dropped or joined ``into`` another one."""
    method, n = learner.method, len(learner.class_names)
    numbers = torch.arange(n) - (torch.arange(n) > gone).long()
    numbers[gone] = -1 if into is None else numbers[into]
    task = int(method.task_of_class[gone])
    method.relabel(numbers.to(method.device))
    learner.held_out = []  # their labels are others now
    if learner.certainty is not None:
        learner.certainty.relabel(numbers.to(method.device))
    sizes = method.task_sizes.clone()
    sizes[task] -= 1
    method.task_sizes = sizes[sizes > 0]
    learner.class_names.pop(gone)
    if learner.samples is not None:
        if into is not None:
            learner.samples[into] += learner.samples[gone]
        learner.samples.pop(gone)
