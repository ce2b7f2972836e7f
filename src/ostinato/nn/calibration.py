"""Temperature under which the probability of an answer is how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STEPS = torch.arange(-40, 41)
"""Half octaves of the temperatures at which sums are kept: from 1e-6 to 1e6, for cosines as for log-likelihoods."""


class Temperature(nn.Module):
    """Temperature T of the probabilities softmax(scores / T), fitted on held-out samples.

    Clarté, Loureiro, Krzakala, Zdeborová: "Expectation Consistency for Calibration of Neural Networks", UAI 2023,
    https://arxiv.org/abs/2303.02644: at T, the mean probability of the answers is the share of right ones. No single
    sample outweighs the others, not even with the classes of other tasks far below, as in methods that infer tasks.
    Differences: of n answers of which r are right, the share is (r + 1/2) / (n + 1), so that a few samples that are all
    right leave doubt. Sums of probabilities are kept at fixed temperatures, to which later samples are added; no sample
    is kept.

    Attributes:
        sums: (K,) sums over samples of the probability of the answer at K temperatures.
        counts: (2,) right and wrong answers.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(len(_STEPS), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def add(self, scores: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add held-out samples.

        Args:
            scores: (n, C), finite.
            labels: (n,) in [0, C).
            groups: (C,) group number of each class; classes of one group are the same answer.
        """
        same = of_the_answer(scores, groups)
        right = groups[scores.argmax(1)] == groups[labels]
        scores = scores.double()
        sums = [(scores / temperature_at(step)).softmax(1)[same].sum() for step in _STEPS.tolist()]
        self.sums = self.sums + torch.stack(sums)
        self.counts = self.counts + torch.stack([right.sum(), (~right).sum()])

    @torch.no_grad()
    def merge(self, other: Temperature) -> None:
        """Add the sums of another one."""
        self.sums, self.counts = self.sums + other.sums, self.counts + other.counts

    @property
    def samples(self) -> int:
        """Number of held-out samples."""
        return int(self.counts.sum())

    def value(self) -> float | None:
        """The temperature, between two kept ones by a line; None without samples."""
        n, (right, _) = self.samples, self.counts.tolist()
        if not n:
            return None
        # Falls with the temperature.
        above = (self.sums / n - (right + 0.5) / (n + 1)).tolist()
        below = next((k for k, difference in enumerate(above) if difference <= 0), len(above) - 1)
        if below == 0 or above[below] > 0:
            return temperature_at(float(_STEPS[below]))
        return temperature_at(float(_STEPS[below]) - above[below] / (above[below] - above[below - 1]))


def of_the_answer(scores: Tensor, groups: Tensor) -> Tensor:
    """Whether each class is the same answer as the best one, (B, C), for scores (B, C) and groups (C,) of classes."""
    return groups[None] == groups[scores.argmax(1)][:, None]


def temperature_at(step: float) -> float:
    """Temperature at a number of half octaves."""
    return 2.0 ** (step / 2)
