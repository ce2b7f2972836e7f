"""L2P: learning to prompt from a pool.

Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister: "Learning to Prompt for Continual Learning", CVPR 2022,
https://arxiv.org/abs/2112.08654.

A pool of M prompts with keys is shared by all tasks. The frozen feature q(x) of an image picks the k prompts whose
keys have the largest cosine with it (eq. 3); they are put before the patches (eq. 2), and the mean of their output
tokens is classified. The loss is cross-entropy over the task's classes plus a pull of the chosen keys towards
q(x) (eq. 5).

Differences from the paper: the optional penalty on frequently chosen keys (eq. 4) is left out. The recipe is that of
the common PyTorch code: learning rate 0.03 at batch size 256 scaled to batch size 16, gradients clipped at norm 1,
prompts and keys drawn from U(-1, 1), every prompt token at the position of the CLS token. Prompts are selected per
sample, in training and at test, where that code lets a batch vote; pixels are normalised as the weights expect, where
it feeds [0, 1]. Cross-entropy over the task's classes equals its masked logits; a task of one class competes with the
frozen rows of earlier classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, check_positive
from ostinato.nn import TaskHeads, cosine
from ostinato.registry import register


@register("l2p")
class L2P(Method):
    """Prompts chosen per sample from a shared pool.

    Args:
        backbone: the frozen encoder.
        pool_size: M, prompts in the pool.
        length: tokens per prompt.
        top_k: prompts chosen per sample.
        pull: weight of the key term (lambda in eq. 5).
        readout: "prompt" classifies the mean of the prompt tokens, "cls" the CLS token.
    """

    recipe = Recipe(epochs=5, batch_size=16, lr=0.03 * 16 / 256, optimizer="adam", clip=1.0)

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool_size: int = 10,
        length: int = 5,
        top_k: int = 5,
        pull: float = 0.1,
        readout: str = "prompt",
    ) -> None:
        super().__init__(backbone)
        check_positive(length=length)
        if not 1 <= top_k <= pool_size:
            raise InputError(f"method.top_k ({top_k}) must lie in [1, pool_size = {pool_size}].")
        if readout not in ("prompt", "cls"):
            raise InputError(f"method.readout must be 'prompt' or 'cls', got {readout!r}.")
        self.top_k, self.pull, self.readout = top_k, pull, readout
        self.prompts = nn.Parameter(torch.empty(pool_size, length, backbone.dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(pool_size, backbone.dim).uniform_(-1, 1))
        self.head = TaskHeads(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's rows to the head; the pool is shared."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pool entries of each sample (eq. 3).

        Returns:
            ids (B, k), and their cosines (B, k), differentiable in the keys.
        """
        similarity = cosine(self.query(x), self.keys)
        ids = similarity.topk(self.top_k, dim=1).indices
        return ids, similarity.gather(1, ids)

    def features(self, x: Tensor, ids: Tensor) -> Tensor:
        """Features (B, D) with the prompts ``ids`` (B, k) before the patches (eq. 2)."""
        tokens = self.backbone.embed(x)
        # As in the public code, every prompt token carries the position of the CLS token.
        prompts = self.prompts[ids].flatten(1, 2) + self.backbone.cls_position().float()
        tokens = self.backbone.run(tokens.insert(prompts, at=1))
        return self.backbone.pool(tokens, at=slice(1, 1 + prompts.shape[1]) if self.readout == "prompt" else None)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and the pull of the chosen keys (eq. 5)."""
        ids, similarity = self.select(x)
        features = self.features(x, ids)
        return {
            "ce": self.head.loss(features, y),
            "pull": -self.pull * similarity.sum(1).mean(),
        }

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x, self.select(x)[0]))
