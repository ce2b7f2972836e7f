"""IDBR: disentangled general and task-specific text features with replay.

Huang, Zhang, Chen, Wang, Yang: "Continual Learning for Text Classification with Information Disentanglement Based
Regularization", NAACL 2021, https://arxiv.org/abs/2104.05489.

The encoder is trained. Its feature f gives a general feature g = tanh(W_g f) and a task-specific one s = tanh(W_s f),
which are classified together. g also predicts whether the two halves of a text are swapped (next sentence prediction),
s predicts the task. A hundredth of each task's samples, the nearest to k-means centres of their features, is kept and
replayed; a penalty holds their g and s to the values after the task before.

Differences from the paper: halves are halves of the tokens between the first and the last, which are markers. Only
replayed samples are held to old values, which are stored; the paper holds all samples by keeping the old encoder. Every
``replay_every``-th step, on average, replays a batch of the step's size. All parts of the model share one rate; the
paper trains the heads faster. Both penalties have constant weights; the paper lowers that of s with every task.
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
"""Loss terms of replayed samples; 0 on steps without replay."""


@register("idbr")
class IDBR(Method):
    """Disentangled features with replay.

    Args:
        backbone: the text encoder, which is trained.
        width: of g and of s.
        memory: share of each task's samples to keep, in (0, 1]: one per cluster, and at least as many as the task has
            classes.
        replay_every: steps per replayed batch.
        order: weight of the prediction of swapped halves.
        task: weight of the prediction of tasks.
        hold_g: weight of the penalty on g.
        hold_s: weight of the penalty on s.
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
            raise InputError(
                "method.order, method.task, method.hold_g and method.hold_s must not be negative, got "
                f"{order}, {task}, {hold_g} and {hold_s}."
            )
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
        """Texts (B, N) with swapped halves of tokens; markers and padding stay in place."""
        inner = (x != self.backbone.tokenization.pad).sum(1, keepdim=True) - 2
        place = torch.arange(x.shape[1], device=x.device) - 1
        turned = (place + inner // 2) % inner.clamp(min=1)
        return x.gather(1, torch.where((place >= 0) & (place < inner), turned, place) + 1)

    def _learned(self, x: Tensor, y: Tensor, tasks: Tensor) -> tuple[Losses, Tensor, Tensor]:
        """Loss terms of samples with and without swapped halves, and g and s of the samples."""
        g, s = self.parts(torch.cat([x, self.swapped(x)]))
        is_swapped = torch.arange(2, device=x.device).repeat_interleave(len(x))
        terms = {
            "ce": F.cross_entropy(self.head(torch.cat([g, s], dim=1)), y.repeat(2)),
            "order": self.order * F.cross_entropy(self.halves(g).float(), is_swapped),
            "task": self.task * F.cross_entropy(self.tasks(s), tasks.repeat(2)),
        }
        return terms, g[: len(x)], s[: len(x)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Loss terms of the batch, and of replayed samples on replay steps."""
        losses, _, _ = self._learned(x, y, torch.full_like(y, self.n_tasks - 1))
        if not len(self.kept):
            return losses
        # Every process draws for itself whether it replays, but all must return the same terms.
        losses |= {name: x.new_zeros((), dtype=torch.float32) for name in REPLAYED}
        if torch.rand(()) < 1 / self.replay_every:
            rows = self.kept.draw(len(x))
            old, g, s = self._learned(self.kept.at(rows), self.kept.y[rows], self.kept.tasks[rows])
            losses |= {f"old_{name}": term for name, term in old.items()}
            losses["hold_g"] = self.hold_g * (g - self.old_g[rows]).square().sum(1).mean()
            losses["hold_s"] = self.hold_s * (s - self.old_s[rows]).square().sum(1).mean()
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Keep samples of the task; store g and s of the whole memory."""
        features, _ = task.extract_features(self.backbone)
        n = max(len(task.classes), round(self.memory * len(features)))
        for x, y in task.eval_batches(representatives(features, n).tolist()):
            self.kept.add(x, y, task.index)
        g, s = zip(*(self.parts(x) for x in self.kept.batches()), strict=True)
        self.old_g, self.old_s = torch.cat(g).float(), torch.cat(s).float()

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(torch.cat(self.parts(x), dim=1))
