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

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Plan, Tokens
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_positive, plain_step
from ostinato.nn import TaskHeads, cosine
from ostinato.nn.projection import Covariance, Subspaces, sampled
from ostinato.registry import register

IMAGES = 256
"""Training images of a task whose tokens are collected for the projection."""


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
        pgp_keys: the same for keys and old q(x), in (0, 1]; only used with ``pgp``.
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
        pgp: float = 0.0,
        pgp_keys: float = 0.97,
    ) -> None:
        super().__init__(backbone)
        check_positive(length=length)
        if not 1 <= top_k <= pool_size:
            raise InputError(f"method.top_k ({top_k}) must lie in [1, pool_size = {pool_size}].")
        if readout not in ("prompt", "cls"):
            raise InputError(f"method.readout must be 'prompt' or 'cls', got {readout!r}.")
        if not 0 <= pgp <= 1:
            raise InputError(f"method.pgp must be 0 (off) or a share of energy in (0, 1], got {pgp}.")
        if not 0 < pgp_keys <= 1:
            raise InputError(f"method.pgp_keys must be a share of energy in (0, 1], got {pgp_keys}.")
        self.top_k, self.pull, self.readout = top_k, pull, readout
        self.pgp, self.pgp_keys = pgp, pgp_keys
        self.prompts = nn.Parameter(torch.empty(pool_size, length, backbone.dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(pool_size, backbone.dim).uniform_(-1, 1))
        self.head = TaskHeads(backbone.dim)
        self.spaces = Subspaces(2 if pgp else 0, backbone.dim)  # of the prompts, of the keys

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's rows to the head; the pool is shared."""
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The pool entries of each sample (eq. 3).

        Returns:
            ids (B, k), and their cosines (B, k), differentiable in the keys.
        """
        return self._select(self.query(x))

    def _select(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """The same for queries (B, D)."""
        similarity = cosine(query, self.keys)
        ids = similarity.topk(self.top_k, dim=1).indices
        return ids, similarity.gather(1, ids)

    def tokens(self, x: Tensor, ids: Tensor) -> Tokens:
        """Tokens (B, 1 + k P + patches, D) to encode: prompts ``ids`` (B, k) before the patches (eq. 2)."""
        # As in the public code, every prompt token carries the position of the CLS token.
        prompts = self.backbone.as_tokens(self.prompts[ids].flatten(1, 2))
        return self.backbone.embed(x).insert(prompts, at=1)

    def enter(self, x: Tensor) -> tuple[Tokens, Losses]:
        """States that enter layer 0 under the chosen prompts, and the pull of the chosen keys (eq. 5)."""
        ids, similarity = self.select(x)
        return self.tokens(x, ids), {"pool": -self.pull * similarity.sum(1).mean()}

    def read(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (B, D) of states that enter layer ``start``, with the edits of a plan where one is given."""
        prompts = slice(1, 1 + self.top_k * self.prompts.shape[1])
        # Never the mean over the tokens that some encoders read: prompts are among them here.
        read = slice(0, 1) if self.readout == "cls" else prompts
        return self.backbone.pool(self.backbone.run(tokens, plan, start=start, read=read), at=slice(None))

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; with ``pgp`` its updates are projected from the second task on."""
        return [Stage(self.loss, step=self._step if self.pgp and task.index else plain_step)]

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, projected for prompts and keys."""
        self.spaces.step(optimizer, [self.prompts.detach(), self.keys.detach()])

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and the pull of the chosen keys (eq. 5)."""
        tokens, losses = self.enter(x)
        return {"ce": self.head.loss(self.read(tokens), y)} | losses

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, add the directions of the task's tokens and of its queries to the subspaces."""
        super().end_task(task)
        if not self.pgp:
            return
        tokens, queries = (Covariance(self.backbone.dim, device=self.device) for _ in range(2))
        n = len(task.train)  # pyright: ignore[reportArgumentType]
        for x in sampled(task.batches(), n, IMAGES):
            # Computed, not looked up: a feature from another batch differs by rounding, and after a resumed run it
            # would no longer come from the same one.
            query = self.backbone(x)
            tokens.add(self.tokens(x, self._select(query)[0]).after(1).real())
            queries.add(query)
        self.spaces.add((tokens, queries), (self.pgp, self.pgp_keys))

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.read(self.enter(x)[0]))
