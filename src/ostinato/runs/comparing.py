"""Two models on the same labelled samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ostinato.errors import InputError
from ostinato.evaluation.answers import answers_of
from ostinato.evaluation.pairing import Difference, mcnemar, paired_difference
from ostinato.learner import Learner
from ostinato.runs.build import samples_to_score
from ostinato.runs.scoring import config_of, load_run
from ostinato.streams import LabeledDataset


@dataclass(frozen=True)
class ClassChange:
    """Answers of both models to the samples of a class.

    Attributes:
        name: of the class.
        samples: number of samples.
        first: number that the first model has right.
        second: number that the second model has right.
    """

    name: str
    samples: int
    first: int
    second: int

    @property
    def change(self) -> float:
        """Accuracy of the second model less that of the first."""
        return (self.second - self.first) / self.samples


@dataclass(frozen=True)
class ChangedAnswer:
    """A sample that one model alone has right.

    Attributes:
        sample: its name.
        true: name of its class.
        first: answer of the first model.
        second: answer of the second model.
    """

    sample: str
    true: str
    first: str
    second: str


@dataclass(frozen=True)
class ModelsCompared:
    """Two models on the same samples.

    Attributes:
        samples: number of samples.
        modality: "image" or "text".
        first: accuracy of the first model.
        second: accuracy of the second model.
        difference: second - first, with its paired standard error; None for fewer than two different samples.
        only_first: number of different samples that the first model alone has right.
        only_second: number of different samples that the second model alone has right.
        classes: by class, those that lost the most first.
        changed: samples that one model alone has right, in their order.
    """

    samples: int
    modality: str
    first: float
    second: float
    difference: Difference | None
    only_first: int
    only_second: int
    classes: list[ClassChange]
    changed: list[ChangedAnswer]

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar(self.only_first, self.only_second)


def compare_models(
    first: str | Path,
    second: str | Path,
    data: dict[str, Any],
    *,
    skip_unknown: bool = False,
    tell: Callable[[str], None] | None = None,
    **where: Any,
) -> ModelsCompared:
    """Score two models on the samples of the classes that both know.

    Samples that either learned from are left out. Each model answers among all of its classes.

    Args:
        first: directory of a finished run, or an artifact folder.
        second: another.
        data: options of ``data.*``; ``path`` is required, others default to those of the first run.
        skip_unknown: leave out classes that neither model learned instead of raising an error.
        tell: receives remarks about the selection of samples.
        where: arguments of :meth:`Learner.load` for both.

    Raises:
        InputError: if an option is wrong, the models share fewer than two classes, or one is of images and the other of
            texts.
        DataError: if the data cannot be scored.
    """
    learners = load_run(first, **where), load_run(second, **where)
    shared, notes = _shared_classes(learners, (str(first), str(second)))
    known = {name for learner in learners for name in learner.class_names}
    names = [*shared, *sorted(known - set(shared))]
    used = np.union1d(learners[0].used, learners[1].used)
    samples, more = samples_to_score(
        data, config_of(first), names, used, seed=learners[0].settings.seed, skip_unknown=skip_unknown
    )
    of_both = samples.subset((samples.labels < len(shared)).nonzero().flatten())
    if not len(of_both):
        raise InputError(f"compare: the data must have samples of a class that both know: {', '.join(shared[:5])}.")
    if left := len(samples) - len(of_both):
        more.append(f"{left} {samples.modality}s of classes that one model knows alone are left out.")
    for note in (*notes, *more):
        if tell is not None:
            tell(note)
    return _compared(of_both, learners, shared)


def _shared_classes(learners: tuple[Learner, Learner], paths: tuple[str, str]) -> tuple[list[str], list[str]]:
    """Names of the classes that both models know, in the order of the first, and notes on the others.

    Raises:
        InputError: if there are fewer than two.
    """
    kinds = [learner.method.backbone.modality for learner in learners]
    if kinds[0] != kinds[1]:
        raise InputError(f"compare: both models must take one kind of input, but {paths[0]} takes {kinds[0]}s and "
                         f"{paths[1]} takes {kinds[1]}s.")  # fmt: skip
    first, second = (learner.class_names for learner in learners)
    shared = [name for name in first if name in second]
    if len(shared) < 2:
        raise InputError(
            f"compare: {paths[0]} and {paths[1]} must share two classes or more, but share {len(shared)}. Compare "
            "models of the same classes."
        )
    notes = []
    for path, names in zip(paths, (first, second), strict=True):
        if own := [name for name in names if name not in shared]:
            shown = ", ".join(map(repr, own[:5])) + (f" and {len(own) - 5} more" if own[5:] else "")
            notes.append(
                f"{path} also knows {shown}. Only the {len(shared)} shared classes are scored, and each model answers "
                "among all of its own."
            )
    return shared, notes


def _compared(samples: LabeledDataset, learners: tuple[Learner, Learner], shared: list[str]) -> ModelsCompared:
    """Score both models on samples whose labels are positions in ``shared``."""
    results, answers = [], []
    for learner in learners:
        own = samples.subset(np.arange(len(samples)))
        own.labels = torch.tensor([learner.class_names.index(name) for name in shared])[samples.labels]
        result = learner.evaluate([own])
        results.append(result)
        answers.append(answers_of([own], result))
    right = np.array([result.right for result in results], bool)
    only = [right[0] & ~right[1], ~right[0] & right[1]]
    content, labels = samples.fingerprints(), samples.labels.numpy()
    # A copy of a sample is no further evidence.
    only_first, only_second = (
        len(set(zip(content[rows].tolist(), labels[rows].tolist(), strict=True))) for rows in only
    )
    counts = [np.bincount(labels, weights=w, minlength=len(shared)).astype(int) for w in (None, *right)]
    rows = zip(shared, *(count.tolist() for count in counts), strict=True)
    classes = sorted((ClassChange(*row) for row in rows if row[1]), key=lambda one: one.change)
    places = np.flatnonzero(only[0] | only[1])
    given = [[learner.class_names[result.answers[i]] for i in places.tolist()]
             for learner, result in zip(learners, results, strict=True)]  # fmt: skip
    changed = zip(samples.subset(places).names(), (shared[labels[i]] for i in places), *given, strict=True)
    return ModelsCompared(
        samples=len(samples),
        modality=samples.modality,
        first=results[0].accuracy,
        second=results[1].accuracy,
        difference=paired_difference([(answers[1], answers[0])]),
        only_first=only_first,
        only_second=only_second,
        classes=classes,
        changed=[ChangedAnswer(*one) for one in changed],
    )
