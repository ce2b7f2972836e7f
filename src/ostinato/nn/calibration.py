"""Temperature under which the probability of an answer is how often it is right."""

from __future__ import annotations

import torch
from torch import Tensor, nn


_STEPS = torch.arange(-40, 41)
"""Half octaves of the temperatures at which losses are kept: from 1e-6 to 1e6, for cosines as for log-likelihoods."""

_LEAST = -14.0
"""Smallest log probability of a wrong answer, 1e-6: a class far below the others must not outweigh all samples."""


class Temperature(nn.Module):
    """Temperature T of the probabilities softmax(scores / T), fitted on held-out samples.

    Guo, Pleiss, Sun, Weinberger: "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599, section 4.2. Differences: the loss is that of the answer's probability as a
    forecast of whether the answer is right, since methods that infer tasks put the classes of other tasks far below.
    With r right and w wrong answers, the targets are (r + 1) / (r + 2) and 1 / (w + 2), as in Platt, "Probabilistic
    Outputs for Support Vector Machines", 1999, section 2.2: a few samples that are all right leave doubt. Losses are
    kept at fixed temperatures as sums, to which later samples are added; no sample is kept.

    Attributes:
        sums: (4, K) sums of log p and log (1 - p) over right answers, then over wrong ones, at K temperatures.
        counts: (2,) right and wrong answers.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(4, len(_STEPS), dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    @torch.no_grad()
    def add(self, scores: Tensor, labels: Tensor, groups: Tensor) -> None:
        """Add held-out samples.

        Args:
            scores: (n, C), finite.
            labels: (n,) in [0, C).
            groups: (C,) group number of each class; classes of one group are the same answer.
        """
        best = scores.argmax(1)
        same = groups[None] == groups[best][:, None]
        right = groups[best] == groups[labels]
        scores = scores.double() - scores.double().amax(1, keepdim=True)
        answer, others = scores.masked_fill(~same, -torch.inf), scores.masked_fill(same, -torch.inf)
        losses = []
        for step in _STEPS.tolist():
            scale = 2.0 ** (-step / 2)
            whole = (scores * scale).logsumexp(1)
            wrong = (others * scale).logsumexp(1) - whole
            losses.append(torch.stack([(answer * scale).logsumexp(1) - whole, wrong.clamp(min=_LEAST)]))
        values = torch.stack(losses, dim=-1)  # (2, n, K)
        self.sums = self.sums + torch.cat([values[:, right].sum(1), values[:, ~right].sum(1)])
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
        """The temperature of least loss, between two kept ones by a parabola; None without samples."""
        if not self.samples:
            return None
        right, wrong = self.counts.tolist()
        sure, unsure = (right + 1) / (right + 2), 1 / (wrong + 2)
        weights = self.sums.new_tensor([sure, 1 - sure, unsure, 1 - unsure])
        loss = -(weights @ self.sums).cpu()
        i = int(loss.argmin())
        step = float(_STEPS[i])
        if 0 < i < len(loss) - 1:
            before, least, after = loss[i - 1 : i + 2].tolist()
            bend = before - 2 * least + after
            step += (before - after) / (2 * bend) if bend > 0 else 0.0
        return 2.0 ** (step / 2)
