"""L2P: learning to prompt from a pool.

Wang, Zhang, Lee, Zhang, Sun, Ren, Su, Perot, Dy, Pfister: "Learning to Prompt for Continual Learning", CVPR 2022,
https://arxiv.org/abs/2112.08654.

A pool of M prompts with keys is shared by all tasks. The frozen feature q(x) of an image picks the k prompts whose
keys have the largest cosine with it (eq. 3); they are put before the patches (eq. 2), and the mean of their output
tokens is classified. The loss is cross-entropy over the task's classes plus a pull of the chosen keys towards
q(x) (eq. 5).

Option ``pgp``: Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI. With x and p the tokens and prompts that enter the encoder, updates dP of
the prompts from the second task on must satisfy (x + p) dP^T = 0, and updates dK of the keys q(x) dK^T = 0, for the
images of earlier tasks (see ``nn/projection.py``).

Differences from the paper: the optional penalty on frequently chosen keys (eq. 4) is left out. The recipe is that of
the common PyTorch code: learning rate 0.03 at batch size 256 scaled to batch size 16, gradients clipped at norm 1,
prompts and keys drawn from U(-1, 1), every prompt token at the position of the CLS token. Prompts are selected per
sample, in training and at test, where that code lets a batch vote; pixels are normalised as the weights expect, where
it feeds [0, 1]. Cross-entropy over the task's classes equals its masked logits; a task of one class competes with the
frozen rows of earlier classes. PGP: x is taken without the CLS token, whose view of the prompts is not protected; the
directions come from the covariance of the tokens, which covers x and p each and with them their sum, where the public
code decomposes a matrix between samples; and the update is projected, not the gradient, because Adam's rescaling leaves
the subspace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

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
    """Prompts chosen per sample from a shared pool.

    Args:
        backbone: the frozen encoder.
        pool_size: M, prompts in the pool.
        length: tokens per prompt.
        top_k: prompts chosen per sample.
        pull: weight of the key term (lambda in eq. 5).
        readout: "prompt" classifies the mean of the prompt tokens, "cls" the CLS token.
        pgp: share of the energy of old tokens that updates of prompts must leave alone, in (0, 1]; 0 is off.
        pgp_keys: the same for keys and old q(x), in (0, 1]; None is 0.97. It needs ``pgp``.
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
        readout: Literal["prompt", "cls"] = "prompt",
        pgp: float = 0.0,
        pgp_keys: float | None = None,
    ) -> None:
        super().__init__(backbone)
        options = built(
            PoolOptions, "method", pool_size=pool_size, length=length, top_k=top_k, pull=pull, readout=readout,
            pgp=pgp, pgp_keys=pgp_keys,
        )  # fmt: skip
        self.pool = Pool(backbone, options)
        self.head = TaskHeads(self.pool.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's rows to the head; the pool is shared."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def features(self, x: Tensor, ids: Tensor) -> Tensor:
        """Features (B, D) with the prompts ``ids`` (B, k) before the patches (eq. 2)."""
        return self.pool.read(self.pool.tokens(x, ids))

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; with ``pgp`` its updates are projected from the second task on."""
        return [Stage(self.loss, step=self.pool.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and the pull of the chosen keys (eq. 5)."""
        ids, similarity = self.pool.select(self.query(x))
        return {"ce": self.head.loss(self.features(x, ids), y)} | self.pool.pull(similarity)

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, keep the directions of the task's tokens and of its queries."""
        self.pool.end_task(task)

    def usage(self, x: Tensor) -> Tensor:
        """Which prompts (B, M) each input is given; 1 for a chosen one."""
        ids, _ = self.pool.select(self.query(x))
        return F.one_hot(ids, len(self.pool.keys)).sum(1)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        ids, _ = self.pool.select(self.query(x))
        return self.head(self.features(x, ids))
