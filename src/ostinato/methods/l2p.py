"""L2P: learning to prompt from a pool.

Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister: "Learning to Prompt for Continual Learning", CVPR 2022,
https://arxiv.org/abs/2112.08654.

All tasks share a pool of M prompts with keys. Each image selects the k prompts whose keys have the largest cosine with
its frozen feature q(x) (eq. 3) and prepends them to its patches (eq. 2); the mean of their output tokens is classified.
The loss is cross-entropy over the task's classes plus a pull of the selected keys towards q(x) (eq. 5).

Option ``pgp``: Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI. With x and p the tokens and prompts that enter the encoder, updates dP of
the prompts from the second task on must satisfy (x + p) dP^T = 0, and updates dK of the keys q(x) dK^T = 0, for the
images of earlier tasks (see ``nn/projection.py``).

Differences from the paper: the optional penalty on frequently selected keys (eq. 4) is left out. The recipe is that of
the common PyTorch code: learning rate 0.03 at batch size 256 scaled to batch size 16, gradients clipped at norm 1,
prompts and keys drawn from U(-1, 1), every prompt token at the position of the CLS token. That code selects prompts by
a vote of the batch and feeds [0, 1] pixels; here prompts are selected per sample, in training and at test, and pixels
are normalised as the weights expect. Cross-entropy over the task's classes equals its masked logits; a task of one
class competes with the frozen rows of earlier classes. PGP: x excludes the CLS token, whose view of the prompts is not
protected. Directions come from the covariance of the tokens, which covers x, p and their sum; the public code
decomposes a matrix between samples. The update is projected, not the gradient, because Adam's rescaling leaves the
subspace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone
from ostinato.choices import built
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.pool import Pool, PoolOptions
from ostinato.nn import TaskHeads
from ostinato.registry import register


@register("l2p")
class L2P(Method):
    """Prompts selected per sample from a shared pool.

    Args:
        backbone: the frozen encoder.
        pool: options of the pool, see :class:`ostinato.methods.parts.pool.PoolOptions`.
    """

    recipe = Recipe(epochs=5, batch_size=16, lr=0.03 * 16 / 256, optimizer="adam", clip=1.0)

    def __init__(self, backbone: Backbone, **pool: Annotated[Any, PoolOptions()]) -> None:
        super().__init__(backbone)
        self.pool = Pool(backbone, built(PoolOptions(), "method", pool))
        self.head = TaskHeads(self.pool.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's rows of the head."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def features(self, x: Tensor, ids: Tensor) -> Tensor:
        """Features (B, D) with the prompts ``ids`` (B, k) before the patches (eq. 2)."""
        return self.pool.read(self.pool.tokens(x, ids))

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage, projected with ``pgp``."""
        return [Stage(self.loss, step=self.pool.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and the pull of the selected keys (eq. 5)."""
        ids, similarity = self.pool.select(self.query(x))
        return {"ce": self.head.loss(self.features(x, ids), y)} | self.pool.pull(similarity)

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, collect the directions of the task's tokens and queries."""
        self.pool.end_task(task)

    def usage(self, x: Tensor) -> Tensor:
        """Selection (B, M) of prompts per input: 1 for a selected prompt, else 0."""
        ids, _ = self.pool.select(self.query(x))
        return F.one_hot(ids, len(self.pool.keys)).sum(1)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        ids, _ = self.pool.select(self.query(x))
        return self.head(self.features(x, ids))
