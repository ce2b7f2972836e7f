"""MBPA++: sparse experience replay, and local adaptation to each test sample.

de Masson d'Autume, Ruder, Kong, Yogatama: "Episodic Memory in Lifelong Language Learning", NeurIPS 2019,
https://arxiv.org/abs/1906.01076.

A memory keeps training samples, keyed by their features under the pre-trained encoder. A hundredth of the training
steps also replays samples (sparse experience replay). At test the K samples with the nearest keys are looked up for
every test sample x, and the parameters W take L steps on

    lambda |W' - W|^2 - 1/K sum_k log p(y_k | x_k; W')

before x is scored. The next test sample starts from W again.

Differences from the paper: by default only the head adapts (``adapt=head``), for all samples of a batch at once;
``adapt=all`` adapts all parameters as in the paper, one sample after the other, which takes hundreds of times as long.
Steps are plain gradient steps. A replayed batch joins the current training step; the paper gives it a step of its own
after ten thousand samples. ``memory`` keeps a share of each task's samples at even distances; the paper keeps all in
its main results.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, check_positive
from ostinato.methods.finetune import Finetune
from ostinato.nn.exemplars import Exemplars
from ostinato.registry import register


@register("mbpa")
class MBPA(Finetune):
    """Sparse replay and local adaptation.

    Args:
        backbone: the encoder, which is trained; a frozen copy computes the keys.
        memory: share of each task's samples to keep, in (0, 1].
        replay_rate: share of training steps with a replayed batch, in [0, 1].
        neighbours: K, samples looked up per test sample.
        steps: L, local steps.
        adapt_lr: learning rate of a local step.
        adapt_l2: lambda, weight of the distance to W.
        adapt: adapted parameters: "head", "all" or "none".
    """

    no_effect: ClassVar = dict.fromkeys(("neighbours", "steps", "adapt_lr", "adapt_l2"), ("adapt", ("none",)))
    recipe = Recipe(epochs=1, batch_size=32, lr=3e-5, optimizer="adamw", clip=1.0)
    data_seen = "memory"
    keys: Tensor
    features_kept: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        memory: float = 1.0,
        replay_rate: float = 0.01,
        neighbours: int = 32,
        steps: int = 30,
        adapt_lr: float = 0.05,
        adapt_l2: float = 0.001,
        adapt: Literal["head", "all", "none"] = "head",
    ) -> None:
        super().__init__(backbone)
        check_positive(neighbours=neighbours, steps=steps)
        if not (0 < memory <= 1 and 0 <= replay_rate <= 1):
            raise InputError(
                f"method.memory must lie in (0, 1] and method.replay_rate in [0, 1], got {memory} and {replay_rate}."
            )
        if adapt_lr <= 0 or adapt_l2 < 0:
            raise InputError(
                f"method.adapt_lr must be positive and method.adapt_l2 not negative, got {adapt_lr} and {adapt_l2}."
            )
        if adapt not in ("head", "all", "none"):
            raise InputError(f"method.adapt must be 'head', 'all' or 'none', got {adapt!r}.")
        self.memory, self.replay_rate, self.neighbours, self.steps = memory, replay_rate, neighbours, steps
        self.adapt_lr, self.adapt_l2, self.adapt = adapt_lr, adapt_l2, adapt
        self.reader = copy.deepcopy(backbone).requires_grad_(False)
        self.pretrained = ("reader",)
        self.kept = Exemplars(backbone)
        self.register_buffer("keys", torch.zeros(0, backbone.dim))
        self.register_buffer("features_kept", torch.zeros(0, backbone.dim))  # of the current encoder

    def query(self, x: Tensor) -> Tensor:
        """Features (B, D) of the pre-trained encoder."""
        with torch.no_grad():
            return self.reader(x)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen, and of replayed samples on replay steps."""
        losses = super().loss(x, y)
        if len(self.kept) and self.replay_rate:
            # Every process draws for itself whether it replays, but all must return the same terms.
            losses["replay"] = x.new_zeros((), dtype=torch.float32)
            if torch.rand(()) < self.replay_rate:
                rows = self.kept.draw(len(x))
                losses["replay"] = F.cross_entropy(self.head(self.backbone(self.kept.at(rows))), self.kept.y[rows])
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Keep samples of the task, and compute features of the whole memory by the current encoder."""
        super().end_task(task)
        n = len(task.train)
        keep = torch.linspace(0, n - 1, max(1, round(self.memory * n))).round().long().tolist()
        for x, y in task.eval_batches(keep):
            self.kept.add(x, y, task.index)
            self.keys = torch.cat([self.keys, self.query(x).float()])
        if self.adapt == "head":
            self.features_kept = torch.cat([self.backbone(x).float() for x in self.kept.batches()])

    def nearest(self, x: Tensor) -> Tensor:
        """Positions (B, K) in the memory of the keys nearest to q(x)."""
        k = min(self.neighbours, len(self.kept))
        # By products of matrices, as torch does it for 26 samples, a neighbour could depend on the size of the batch.
        mode = "donot_use_mm_for_euclid_dist"
        return torch.cdist(self.query(x).float(), self.keys, compute_mode=mode).topk(k, largest=False).indices

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        if self.adapt == "none" or not len(self.kept):
            return super().scores(x)
        near = self.nearest(x)
        if self.adapt == "head":
            return self._by_heads(self.features(x).float(), near)
        return torch.cat([self._by_all(x[i : i + 1], near[i]) for i in range(len(x))])

    def _by_heads(self, features: Tensor, near: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D), each by an adapted head.

        Steps move the head within the span of the K neighbours' features F: W' = W - S^T F. Tracking S (K, C) and the
        bias is enough, from the products F F^T and F W^T, without a head per sample.
        """
        weight, bias = self.head.weight.joined(), self.head.bias.joined()
        known, answers = self.features_kept[near], F.one_hot(self.kept.y[near], len(bias))  # (B, K, D), (B, K, C)
        keep = 1 - 2 * self.adapt_lr * self.adapt_l2
        with torch.autocast(features.device.type, enabled=False):
            gram, start = known @ known.mT, known @ weight.T
            shift, new_bias = torch.zeros_like(start), bias.expand(near.shape[0], -1)
            for _ in range(self.steps):
                guess = start + new_bias[:, None] - gram @ shift
                wrong = ((guess - guess.logsumexp(-1, keepdim=True)).exp() - answers) / near.shape[1]
                shift = keep * shift + self.adapt_lr * wrong
                new_bias = bias + keep * (new_bias - bias) - self.adapt_lr * wrong.sum(1)
            return features @ weight.T + new_bias - (features[:, None] @ known.mT @ shift)[:, 0]

    def _by_all(self, x: Tensor, near: Tensor) -> Tensor:
        """Logits (1, n_seen) of one sample by an adapted copy of all parameters."""
        # Leave the inference mode of evaluation, which has no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            backbone, head = copy.deepcopy(self.backbone), copy.deepcopy(self.head)
            params = [*backbone.parameters(), *head.parameters()]
            start = [p.detach().clone() for p in params]
            known, answers = self.kept.at(near.clone()).clone(), self.kept.y[near.clone()].clone()
            for _ in range(self.steps):
                away = torch.stack([(p - s).square().sum() for p, s in zip(params, start, strict=True)]).sum()
                loss = F.cross_entropy(head(backbone(known)), answers) + self.adapt_l2 * away
                for p, grad in zip(params, torch.autograd.grad(loss, params, allow_unused=True), strict=True):
                    if grad is not None:
                        p.data -= self.adapt_lr * grad
            with torch.no_grad():
                return head(backbone(x.clone()))
