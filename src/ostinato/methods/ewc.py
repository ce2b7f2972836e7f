"""EWC: elastic weight consolidation.

Kirkpatrick et al.: "Overcoming catastrophic forgetting in neural networks", PNAS 2017,
https://arxiv.org/abs/1612.00796. The online variant is by Schwarz et al.: "Progress & Compress: A scalable framework
for continual learning", ICML 2018, https://arxiv.org/abs/1805.06370.

While a task is learned, every parameter p is pulled to its values p_t after earlier tasks t, by the diagonal of the
Fisher information F_t there (equation 3):

    CE + lambda / 2 sum_t sum_i F_t,i (p_i - p_t,i)^2,   F_t,i = E_x E_{y ~ p(y | x)} (d log p(y | x) / d p_i)^2.

Online EWC has one penalty, at the newest values, with ``F = gamma F + F_t``.

Up to a constant, the penalties of all tasks add to one, with weights ``A = sum_t F_t`` about ``sum_t F_t p_t / A``. Two
numbers per parameter are kept for any number of tasks.

Differences from the paper: the Fisher information is estimated on ``fisher_samples`` samples of the task, with one
label each drawn from the model. Backbone and head are protected, with the rows of old classes. Cross-entropy is over
all classes seen. The recipe is that of ``finetune``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, check_positive
from ostinato.methods.finetune import Finetune
from ostinato.registry import register


@register("ewc")
class EWC(Finetune):
    """Fine-tuning with a quadratic penalty on important parameters.

    Args:
        backbone: the encoder, which is trained.
        weight: lambda, weight of the penalty.
        fisher_samples: samples of a task for its Fisher information.
        online: keep one penalty at the newest values (online EWC).
        gamma: decay of earlier Fisher information, in (0, 1].
    """

    no_effect: ClassVar = {"gamma": ("online", (False,))}
    importance: Tensor
    centre: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        weight: float = 1000.0,
        fisher_samples: int = 200,
        online: bool = False,
        gamma: float = 1.0,
    ) -> None:
        super().__init__(backbone)
        check_positive(fisher_samples=fisher_samples)
        if weight <= 0 or not 0 < gamma <= 1:
            raise InputError(f"method.weight must be positive and method.gamma in (0, 1], got {weight} and {gamma}.")
        self.weight, self.fisher_samples, self.online, self.gamma = weight, fisher_samples, online, gamma
        self.register_buffer("importance", torch.zeros(0))  # A
        self.register_buffer("centre", torch.zeros(0))

    def protected(self) -> list[nn.Parameter]:
        """Parameters of the backbone and the head; rows of new classes come last."""
        rows = (p for pair in zip(self.head.weight, self.head.bias, strict=True) for p in pair)
        return [*self.backbone.parameters(), *rows]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen; from the second task on, also the penalty."""
        losses = super().loss(x, y)
        if len(self.importance):
            losses["ewc"] = self.weight / 2 * self.penalty()
        return losses

    def penalty(self) -> Tensor:
        """The sum ``sum_i A_i (p_i - centre_i)^2``."""
        terms, start = [], 0
        for p in self.protected():
            if start == len(self.importance):  # rows of new classes
                break
            part = slice(start, start := start + p.numel())
            terms.append((self.importance[part] * (p.flatten() - self.centre[part]).square()).sum())
        return torch.stack(terms).sum()

    def end_task(self, task: LearnTask) -> None:
        """Add the Fisher information of the task."""
        super().end_task(task)
        fisher = self.fisher(task)
        values = torch.cat([p.detach().flatten() for p in self.protected()])
        new = len(values) - len(self.importance)
        old, centre = F.pad(self.importance, (0, new)), F.pad(self.centre, (0, new))
        if self.online:
            self.importance, self.centre = self.gamma * old + fisher, values
            return
        self.importance = old + fisher
        share = torch.where(self.importance > 0, fisher / self.importance, 1.0)
        self.centre = centre + share * (values - centre)

    def fisher(self, task: LearnTask) -> Tensor:
        """Diagonal (parameters,) of the Fisher information on samples of a task, with labels drawn from the model."""
        params = self.protected()
        total = [torch.zeros_like(p) for p in params]
        n = min(self.fisher_samples, len(task.train))
        for x in self._single(task, torch.randperm(len(task.train))[:n].tolist()):
            with torch.enable_grad():
                log_p = self.scores(x).log_softmax(1)[0]
                grads = torch.autograd.grad(log_p[log_p.detach().exp().multinomial(1)[0]], params, allow_unused=True)
            for sum_, g in zip(total, grads, strict=True):
                if g is not None:
                    sum_ += g.square()
        return torch.cat([sum_.flatten() for sum_ in total]) / n

    @staticmethod
    def _single(task: LearnTask, rows: list[int]) -> Iterator[Tensor]:
        for x, _ in task.eval_batches(rows):
            yield from x.split(1)
