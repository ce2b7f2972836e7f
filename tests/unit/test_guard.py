"""What is measured before a continuation's model takes the place of the earlier one, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.test_answers import answers

from ostinato.evaluation.pairing import mcnemar
from ostinato.runs.guard import fall_of

NAMES = ["red", "blue"]


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (3, 3, 1.0), (1, 5, 2 * (1 + 6) / 64), (5, 1, 2 * (1 + 6) / 64), (0, 10, 2 / 1024), (2, 3, 1.0)],
)
def test_mcnemar_by_hand(first, second, p):
    assert mcnemar(first, second) == pytest.approx(p)


def test_mcnemar_of_many_samples():
    """Of 4,000, 100 more are 3.16 standard deviations: about the normal p-value with a correction, 0.00174."""
    assert mcnemar(1950, 2050) == pytest.approx(0.1176, abs=2e-3)
    assert mcnemar(1900, 2100) == pytest.approx(0.00165, abs=1e-4)


def fall(lost: int, n: int = 40, max_drop: float = 0.1):
    """``n`` samples, half of each class, all right before; after, ``lost`` red ones are wrong."""
    labels = np.repeat([0, 1], n // 2)
    before = answers([True] * n, labels=labels)
    after = answers([*[False] * lost, *[True] * (n - lost), True, False], labels=[*labels, 2, 2])
    found = fall_of(before, after, NAMES, max_drop)
    assert found is not None
    return found


def test_a_fall_beyond_the_limit_and_beyond_chance_is_a_problem():
    found = fall(8)
    assert (found.samples, found.before, found.after) == (40, 1.0, 32 / 40), "new classes do not count"
    assert found.problem is not None
    assert found.problem.startswith("the accuracy on old classes falls by 20.0 points (± 6.4, on 40 samples)")
    assert found.problem.endswith("learn.max_drop=0.1: 'red' from 20 to 12 of 20 right")
    assert found.remark is None


def test_a_fall_within_the_limit_is_none():
    assert (fall(4).problem, fall(4).remark) == (None, None)
    assert fall(8, max_drop=0.2).problem is None
    assert fall(8, max_drop=0.19).problem is not None


def test_a_fall_on_few_samples_is_a_remark():
    """One of eight: 12.5 points, but one standard error."""
    found = fall(1, n=8)
    assert found.problem is None
    assert "falls by 12.5 points (± 12.5, on 8 samples)" in (found.remark or "")


def test_no_limit_lets_any_fall_count_that_is_no_chance():
    assert fall(8, max_drop=0.0).problem is not None
    assert (fall(0, max_drop=0.0).problem, fall(0, max_drop=0.0).remark) == (None, None)


def test_one_sample_is_no_check():
    assert fall_of(answers([True]), answers([False]), NAMES, 0.1) is None
