"""Temperatures and calibration errors, by hand and on drawn samples."""

from __future__ import annotations

import math

import pytest
import torch

from ostinato.evaluation.calibration import answer_probabilities, bin_sums, calibration_error
from ostinato.nn.calibration import Temperature


def drawn(n: int, scale: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (n, 5) whose softmax after a division by ``scale`` is the distribution of the labels (n,)."""
    rng = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, 5, generator=rng)
    return scale * logits, logits.softmax(1).multinomial(1, generator=rng).flatten()


ALL = torch.arange(5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_the_scale_of_scores_is_found(scale: float) -> None:
    fitted = Temperature()
    fitted.add(*drawn(4000, scale), ALL)
    assert fitted.value() == pytest.approx(scale, rel=0.1)
    scores, labels = drawn(4000, scale, seed=1)
    right = scores.argmax(1) == labels
    error = calibration_error(bin_sums(answer_probabilities(scores, fitted.value() or 0.0, ALL), right))
    assert error < 0.03
    if scale != 1:
        assert calibration_error(bin_sums(answer_probabilities(scores, 1.0, ALL), right)) > 0.1


def test_samples_may_come_in_parts_and_from_two_learners() -> None:
    scores, labels = drawn(60, 1.0)
    whole, parts, other = Temperature(), Temperature(), Temperature()
    whole.add(scores, labels, ALL)
    parts.add(scores[:20], labels[:20], ALL)
    other.add(scores[20:], labels[20:], ALL)
    parts.merge(other)
    assert torch.allclose(parts.sums, whole.sums)
    assert torch.equal(parts.counts, whole.counts)
    assert parts.samples == 60


def test_right_answers_alone_leave_doubt() -> None:
    """Of 8 right answers, the probability is 8.5 / 9."""
    fitted = Temperature()
    fitted.add(torch.tensor([[1.0, 0.0]] * 8), torch.zeros(8, dtype=torch.int64), torch.arange(2))
    wanted = 1 / math.log(8.5 / 0.5)  # sigmoid(1 / T) = 8.5 / 9
    assert fitted.value() == pytest.approx(wanted, rel=0.03)


def test_answers_that_no_temperature_fits_take_the_last_one() -> None:
    """Probabilities of two classes are never below one half, and of equal scores never above."""
    wrong, equal = Temperature(), Temperature()
    wrong.add(torch.tensor([[1.0, 0.0]] * 8), torch.ones(8, dtype=torch.int64), torch.arange(2))
    assert wrong.value() == 2.0**20
    equal.add(torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64), torch.arange(2))
    assert equal.value() == 2.0**-20


def test_no_samples_give_no_temperature() -> None:
    assert Temperature().value() is None


def test_a_class_far_below_does_not_outweigh_all_samples() -> None:
    """Answers of an inferred task, with the classes of others 1e9 below."""
    scores, labels = drawn(2000, 1.0)
    scores = torch.cat([scores, torch.full((2000, 1), -1e9)], dim=1)
    labels[:20] = 5
    fitted = Temperature()
    fitted.add(scores, labels, torch.arange(6))
    assert fitted.value() == pytest.approx(1.0, rel=0.15)


def test_classes_that_are_one_answer_share_its_probability() -> None:
    groups = torch.tensor([0, 1, 0])
    scores = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    shares = scores.softmax(1)
    wanted = torch.stack([shares[0, 0] + shares[0, 2], shares[1, 1]])
    assert torch.allclose(answer_probabilities(scores, 1.0, groups).float(), wanted)
    fitted = Temperature()
    fitted.add(scores, torch.tensor([2, 0]), groups)
    assert fitted.counts.tolist() == [1, 1]
    assert float(fitted.sums[40]) == pytest.approx(float(wanted.sum())), "at a temperature of 1"


def test_the_calibration_error_by_hand() -> None:
    """Bins (0, 1/15], ..., (14/15, 1]: 0.62 and 0.66 share one, 0.95 and 1 another; 0 is in the first."""
    probability = torch.tensor([0.62, 0.66, 0.95, 1.0, 0.0])
    right = torch.tensor([True, False, True, True, False])
    sums = bin_sums(probability, right)
    assert sums[:, 0].nonzero().flatten().tolist() == [0, 9, 14]
    assert calibration_error(sums) == pytest.approx((0 + abs(1 - 1.28) + abs(2 - 1.95)) / 5)
    edge = bin_sums(torch.tensor([0.6], dtype=torch.float64), torch.tensor([True]))
    assert edge[:, 0].nonzero().flatten().tolist() == [8], "9/15 is the end of its bin"
    halves = bin_sums(probability[:2], right[:2]) + bin_sums(probability[2:], right[2:])
    assert torch.allclose(halves, sums)
