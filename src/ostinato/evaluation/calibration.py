"""Expected calibration error: how far probabilities are from how often answers are right."""

from __future__ import annotations

import torch
from torch import Tensor

from ostinato.nn.calibration import of_the_answer

BINS = 15
"""Number of bins of equal width."""


def bin_sums(probability: Tensor, right: Tensor) -> Tensor:
    """Sums over the samples of each bin: number, probability, right answers; sums of parts add.

    Args:
        probability: (n,) of the answers; bin b holds those in (b / 15, (b + 1) / 15], the first 0 as well.
        right: (n,) whether an answer is right.

    Returns:
        (15, 3) in fp64.
    """
    place = (probability.double() * BINS).ceil().long().clamp(1, BINS) - 1
    values = torch.stack([torch.ones_like(probability), probability, right.to(probability.dtype)], dim=1).double()
    return values.new_zeros(BINS, 3).index_add(0, place, values)


def calibration_error(sums: Tensor) -> float:
    """Expected calibration error, from the sums of :func:`bin_sums`.

    It is the mean over samples of ``|share of right answers - mean probability|`` of the sample's bin: Naeini, Cooper,
    Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI 2015; with 15 bins as in Guo et
    al., ICML 2017, equation 3.

    Returns:
        A fraction: 0 if every bin is right as often as its probabilities say.
    """
    return float((sums[:, 2] - sums[:, 1]).abs().sum() / sums[:, 0].sum())


def answer_probabilities(scores: Tensor, temperature: float, groups: Tensor) -> Tensor:
    """Probability of each sample's answer, the sum over the classes that are the same answer.

    Args:
        scores: (B, C).
        temperature: by which scores are divided before the softmax.
        groups: (C,) group number of each class; classes of one group are the same answer.
    """
    return ((scores.double() / temperature).softmax(1) * of_the_answer(scores, groups)).sum(1)
