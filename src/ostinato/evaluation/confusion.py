"""Confusion between classes: counts, shares per class, confused pairs, an order by similarity, wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ostinato.evaluation.evaluator import Evaluation


@dataclass(frozen=True)
class ClassResult:
    """Answers of one class.

    Attributes:
        name: of the class.
        samples: number of samples of the class, its support.
        answered: number of samples with the class as answer.
        right: number of samples that are both.
    """

    name: str
    samples: int
    answered: int
    right: int

    @property
    def recall(self) -> float | None:
        """Share of the samples of the class that are right; None without samples."""
        return self.right / self.samples if self.samples else None

    @property
    def precision(self) -> float | None:
        """Share of the answers with the class that are right; None if it was never the answer."""
        return self.right / self.answered if self.answered else None


@dataclass(frozen=True)
class Pair:
    """A class, and a wrong answer to its samples.

    Attributes:
        true: name of the class.
        predicted: name of the answer.
        count: number of samples of the class with this answer.
        of: number of samples of the class.
    """

    true: str
    predicted: str
    count: int
    of: int


@dataclass(frozen=True)
class Confusion:
    """Answers by true class.

    Attributes:
        names: of the classes seen, by label.
        counts: (C, C) int64, samples of the class of the row with the answer of the column. A right answer counts on
            the diagonal, also if it is another class of the same group.
    """

    names: Sequence[str]
    counts: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray, result: Evaluation, names: Sequence[str]) -> Confusion:
        """Count the answers of an evaluation.

        Args:
            labels: (n,) true labels, in the order of ``result.answers``.
            result: of the samples.
            names: of the classes seen.
        """
        answers = np.where(result.right, labels, result.answers)
        counts = np.zeros((len(names), len(names)), np.int64)
        np.add.at(counts, (labels, answers), 1)
        return cls(names, counts)

    def classes(self) -> list[ClassResult]:
        """Results of the classes with samples or answers, by label."""
        samples, answered, right = self.counts.sum(1), self.counts.sum(0), np.diag(self.counts)
        rows = zip(self.names, samples.tolist(), answered.tolist(), right.tolist(), strict=True)
        return [ClassResult(*row) for row in rows if row[1] or row[2]]

    def pairs(self) -> list[Pair]:
        """Confused pairs, first those with the most samples, of these the largest shares of the class."""
        wrong = self.counts - np.diag(np.diag(self.counts))
        of = self.counts.sum(1)
        rows, columns = np.nonzero(wrong)
        found = [
            Pair(self.names[i], self.names[j], int(wrong[i, j]), int(of[i]))
            for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        ]
        return sorted(found, key=lambda pair: (-pair.count, pair.of))

    def similarity(self) -> np.ndarray:
        """How often two classes are confused, (C, C): the mean of the shares in both directions, 0 on the diagonal."""
        shares = self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1)
        np.fill_diagonal(shares, 0)
        return (shares + shares.T) / 2


def similarity_order(similarity: np.ndarray) -> list[int]:
    """Order classes so that similar ones are neighbours.

    Clusters are merged by average linkage (Sokal and Michener, "A Statistical Method for Evaluating Systematic
    Relationships", 1958), the most similar two first. Two merged clusters are turned so that their most similar ends
    meet. Classes without any similarity keep their order.

    Args:
        similarity: (n, n), symmetric and not negative.

    Returns:
        The classes in order, n of them.
    """
    n = len(similarity)
    members = {i: [i] for i in range(n)}
    between = similarity.astype(float).copy()
    np.fill_diagonal(between, -1.0)
    while len(members) > 1:
        i, j = sorted(map(int, np.unravel_index(np.argmax(between), between.shape)))
        if between[i, j] <= 0:
            break
        a, b = members[i], members.pop(j)
        turns = [(x, y) for x in (a, a[::-1]) for y in (b, b[::-1])]
        first, second = max(turns, key=lambda turn: similarity[turn[0][-1], turn[1][0]])
        members[i] = first + second
        joined = (len(a) * between[i] + len(b) * between[j]) / (len(a) + len(b))
        between[i], between[:, i] = joined, joined
        between[j], between[:, j], between[i, i] = -1.0, -1.0, -1.0
    return [c for i in sorted(members) for c in members[i]]


def wrongest(result: Evaluation) -> list[int]:
    """Positions of the wrong answers, the most probable first."""
    wrong = np.flatnonzero(~np.array(result.right, bool))
    return wrong[np.argsort(-np.array(result.probabilities)[wrong], kind="stable")].tolist()
