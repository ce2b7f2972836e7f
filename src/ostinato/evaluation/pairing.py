"""The difference between two methods on the same samples, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ostinato.evaluation.answers import Answers

NOISE = 2.0
"""A difference below this many standard errors may be chance."""


@dataclass(frozen=True)
class Difference:
    """A mean paired difference, in fractions.

    Attributes:
        mean: mean of right_a - right_b.
        error: standard error of the mean.
        samples: number of compared samples over all pairs of runs.
        pairs: number of pairs of runs.
    """

    mean: float
    error: float
    samples: int
    pairs: int

    @property
    def within_noise(self) -> bool:
        """Whether the difference is zero or smaller than two standard errors."""
        return self.mean == 0 or abs(self.mean) < NOISE * self.error

    def __str__(self) -> str:
        """In points: ``+1.3 ± 0.4``, or ``+0.2 ± 0.4, within noise``."""
        noise = ", within noise" if self.within_noise else ""
        return f"{100 * self.mean:+.1f} ± {100 * self.error:.1f}{noise}"


def common_samples(a: Answers, b: Answers) -> tuple[np.ndarray, np.ndarray]:
    """Pair the samples of two runs by fingerprint, with right_a - right_b of each.

    Samples of equal content cannot be distinguished. Their difference is that of the shares of right answers, and
    counts as often as the content occurs in both runs.

    Returns:
        Fingerprints (n,) and differences (n,) in [-1, 1], in ascending order of the fingerprints.
    """
    (ids_a, right_a, times_a), (ids_b, right_b, times_b) = _shares(a), _shares(b)
    ids, i, j = np.intersect1d(ids_a, ids_b, assume_unique=True, return_indices=True)
    times = np.minimum(times_a[i], times_b[j])
    return np.repeat(ids, times), np.repeat(right_a[i] - right_b[j], times)


def _shares(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fingerprints with the share of right answers and the number of samples of each."""
    ids, place, times = np.unique(answers.samples, return_inverse=True, return_counts=True)
    return ids, np.bincount(place, weights=answers.right, minlength=len(ids)) / np.maximum(times, 1), times


def paired_difference(pairs: Sequence[tuple[Answers, Answers]]) -> Difference | None:
    """Mean and standard error of right_a - right_b over the common samples of each pair.

    Over several pairs (one per seed) the variance of the mean is the sum of the variances between samples and between
    pairs. Each is computed from sums of residuals within a cluster, with the correction m / (m - 1) for m clusters:
    Cameron, Gelbach, Miller, "Robust Inference With Multiway Clustering", JBES 2011, equation 2.13 without its third
    term, which can only make the error smaller. With one pair this is the standard error of a mean.

    Args:
        pairs: answers of runs a and b with the same seed.

    Returns:
        The difference; None for fewer than two different samples.
    """
    ids, values = zip(*(common_samples(a, b) for a, b in pairs), strict=True) if pairs else ((), ())
    d = np.concatenate(values) if values else np.zeros(0)
    if len(d) == 0:
        return None
    mean = float(d.mean())
    _, sample = np.unique(np.concatenate(ids), return_inverse=True)
    if sample.max() == 0:
        return None
    run = np.repeat(np.arange(len(values)), [len(v) for v in values])
    between_samples = _variance(d - mean, sample)
    between_pairs = _variance(d - mean, run) if run.max() > 0 else 0.0
    return Difference(mean, math.sqrt(between_samples + between_pairs), len(d), len(pairs))


def _variance(residuals: np.ndarray, cluster: np.ndarray) -> float:
    """Variance of a mean from residuals (n,) that are dependent within clusters; clusters are numbered from 0."""
    sums = np.bincount(cluster, weights=residuals)
    m = len(sums)
    return float((sums**2).sum()) / len(residuals) ** 2 * m / (m - 1)


def mcnemar(first: int, second: int) -> float:
    """Exact p-value, two-sided, that two models are right equally often (McNemar's test).

    Under this hypothesis, each sample that one model alone has right is the first's or the second's with probability
    1/2: McNemar, "Note on the Sampling Error of the Difference Between Correlated Proportions or Percentages",
    Psychometrika 1947, with the binomial distribution itself in place of its approximation.

    Args:
        first: number of samples that the first model alone has right.
        second: number of samples that the second model alone has right.

    Returns:
        A probability; 1 without such samples.
    """
    n = first + second
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(
        math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(min(first, second) + 1)
    )
    return min(1.0, 2 * tail)
