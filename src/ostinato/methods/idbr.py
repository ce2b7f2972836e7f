"""IDBR: what all tasks share and what a task has of its own, kept apart and replayed.

Huang, Zhang, Chen, Wang, Yang: "Continual Learning for Text Classification with Information Disentanglement Based
Regularization", NAACL 2021, https://arxiv.org/abs/2104.05489.

The encoder is trained on. From its feature come g = tanh(W_g f), general, and s = tanh(W_s f), of the task; both
classify together. g also tells whether the two halves of a text stand in their order or were swapped (next sentence
prediction), s which task a text belongs to. A hundredth of each task's samples, the nearest to k-means centres of their
features, is kept and replayed; on these, g and s are held to what they were after the task before.

Differences from the paper: halves are halves of the tokens between the first and the last, which mark the ends. Only
replayed samples are held to old values, since those are at hand without the old encoder; the paper holds all samples
with it. Every ``replay_every``-th step, on average, replays a batch of the size of the step's. All parts of the model
share one rate, where the paper trains the heads faster. In the paper s is held the more loosely the longer the stream;
here both weights stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import TextBackbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, check_positive
from ostinato.nn import TaskHeads
from ostinato.nn.clusters import representatives
from ostinato.nn.exemplars import Exemplars
from ostinato.registry import register

REPLAYED = ("old_ce", "old_order", "old_task", "hold_g", "hold_s")
"""Loss terms of samples from the memory; 0 on steps without any."""


@register("idbr")
class IDBR(Method):
    """Disentangled features with replay.

    Args:
        backbone: a text encoder, which is trained.
        width: of g and of s.
        memory: share of each task's samples that is kept, in (0, 1], for as many clusters of the task; they are as
            many as its classes at least, but not one of each.
        replay_every: steps per replayed batch.
        order: weight of telling swapped halves.
        task: weight of telling tasks.
        hold_g: weight of holding g.
        hold_s: weight of holding s.
    """

    recipe = Recipe(epochs=1, batch_size=8, lr=3e-5, optimizer="adamw", weight_decay=0.01, clip=1.0)
    needs = TextBackbone
    data_seen = "memory"
    backbone: TextBackbone
    old_g: Tensor
    old_s: Tensor

    def __init__(
        self,
        backbone: TextBackbone,
        *,
        width: int = 128,
        memory: float = 0.01,
        replay_every: int = 10,
        order: float = 1.0,
        task: float = 1.0,
        hold_g: float = 0.5,
        hold_s: float = 0.5,
    ) -> None:
        super().__init__(backbone, trains_backbone=True)
        check_positive(width=width, replay_every=replay_every)
        if not 0 < memory <= 1:
            raise InputError(f"method.memory must lie in (0, 1], got {memory}.")
        if min(order, task, hold_g, hold_s) < 0:
            raise InputError("method.order, method.task, method.hold_g and method.hold_s must not be negative.")
        self.memory, self.replay_every = memory, replay_every
        self.order, self.task, self.hold_g, self.hold_s = order, task, hold_g, hold_s
        self.general, self.specific = nn.Linear(backbone.dim, width), nn.Linear(backbone.dim, width)
        self.halves = nn.Linear(width, 2)
        self.tasks = TaskHeads(width, freeze_old=False)
        self.head = TaskHeads(2 * width, freeze_old=False)
        self.kept = Exemplars(backbone)
        self.register_buffer("old_g", torch.zeros(0, width))
        self.register_buffer("old_s", torch.zeros(0, width))

    def begin_task(self, task: LearnTask) -> None:
        """Add a row per new class and one for the task."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)
        self.tasks.grow(1, device=self.device)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """G and s, each (B, width)."""
        feature = self.backbone(x)
        return torch.tanh(self.general(feature)), torch.tanh(self.specific(feature))

    def swapped(self, x: Tensor) -> Tensor:
        """Texts (B, N) with the second half of their tokens before the first; the ends and what fills up stay."""
        inner = (x != self.backbone.tokenization.pad).sum(1, keepdim=True) - 2
        place = torch.arange(x.shape[1], device=x.device) - 1
        turned = (place + inner // 2) % inner.clamp(min=1)
        return x.gather(1, torch.where((place >= 0) & (place < inner), turned, place) + 1)

    def _learned(self, x: Tensor, y: Tensor, tasks: Tensor) -> tuple[Losses, Tensor, Tensor]:
        """The terms of samples and of themselves with their halves swapped, and g and s of the samples."""
        g, s = self.parts(torch.cat([x, self.swapped(x)]))
        is_swapped = torch.arange(2, device=x.device).repeat_interleave(len(x))
        terms = {
            "ce": F.cross_entropy(self.head(torch.cat([g, s], dim=1)), y.repeat(2)),
            "order": self.order * F.cross_entropy(self.halves(g).float(), is_swapped),
            "task": self.task * F.cross_entropy(self.tasks(s), tasks.repeat(2)),
        }
        return terms, g[: len(x)], s[: len(x)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """The terms of the batch, and on replaying steps those of samples from the memory as well."""
        losses, _, _ = self._learned(x, y, torch.full_like(y, self.n_tasks - 1))
        if not len(self.kept):
            return losses
        # Of the processes that share a step each draws for itself, and all must name the same terms.
        losses |= {name: x.new_zeros((), dtype=torch.float32) for name in REPLAYED}
        if torch.rand(()) < 1 / self.replay_every:
            rows = self.kept.draw(len(x))
            old, g, s = self._learned(self.kept.at(rows), self.kept.y[rows], self.kept.tasks[rows])
            losses |= {f"old_{name}": term for name, term in old.items()}
            losses["hold_g"] = self.hold_g * (g - self.old_g[rows]).square().sum(1).mean()
            losses["hold_s"] = self.hold_s * (s - self.old_s[rows]).square().sum(1).mean()
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Keep samples of the task; note g and s of the whole memory."""
        features, _ = task.extract_features(self.backbone)
        n = max(len(task.classes), round(self.memory * len(features)))
        for x, y in task.eval_batches(representatives(features, n).tolist()):
            self.kept.add(x, y, task.index)
        g, s = zip(*(self.parts(x) for x in self.kept.batches()), strict=True)
        self.old_g, self.old_s = torch.cat(g).float(), torch.cat(s).float()

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(torch.cat(self.parts(x), dim=1))
