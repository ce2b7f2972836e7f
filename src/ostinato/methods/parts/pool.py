"""Prompt pool of L2P: every sample selects prompts by their keys and prepends them to its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ostinato.backbones import Backbone, Plan, Tokens
from ostinato.choices import Options, Share, Size
from ostinato.errors import InputError
from ostinato.methods.base import Losses
from ostinato.methods.parts.prompts import Prompts
from ostinato.nn import cosine

PGP_KEYS = 0.97
"""Default of ``pgp_keys`` under ``pgp``."""


class PoolOptions(Options, frozen=True):
    """Options of the pool of L2P.

    Attributes:
        pool_size: number M of prompts in the pool.
        length: tokens per prompt.
        top_k: prompts selected per sample.
        pull: weight of the key term (lambda in eq. 5).
        readout: classified feature: "prompt" is the mean of the prompt tokens, "cls" the CLS token.
        pgp: share of the energy of old tokens that updates of prompts must avoid, in (0, 1]; 0 is off.
        pgp_keys: share of the energy of old q(x) that updates of keys must avoid, in (0, 1]; None is 0.97. It needs
            ``pgp``.
    """

    name: Literal["l2p"] = "l2p"
    pool_size: Size = 10
    length: Size = 5
    top_k: Size = 5
    pull: float = 0.1
    readout: Literal["prompt", "cls"] = "prompt"
    pgp: Share = 0.0
    pgp_keys: Annotated[float, Field(gt=0, le=1)] | None = None

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Pool:  # noqa: ARG002 - of prefixes
        """Make the pool; errors name options under ``where``."""
        return Pool(backbone, self, where)


class Pool(Prompts):
    """A pool of prompts with keys; errors name options under ``where``."""

    registered_after: ClassVar[tuple[str, ...]] = ("keys", "head")

    def __init__(self, backbone: Backbone, options: PoolOptions, where: str = "method") -> None:
        m, pgp, pgp_keys = options.pool_size, options.pgp, options.pgp_keys
        if options.top_k > m:
            raise InputError(f"{where}.top_k ({options.top_k}) must lie in [1, pool_size = {m}].")
        if pgp_keys is not None and not pgp:
            raise InputError(f"{where}.pgp_keys has no effect with {where}.pgp=0; set {where}.pgp as well.")
        shares = [pgp, PGP_KEYS if pgp_keys is None else pgp_keys] if pgp else []
        super().__init__(backbone, shares, widths=[backbone.arch.dim, backbone.dim][: len(shares)])
        self.top_k, self.weight, self.readout = options.top_k, options.pull, options.readout
        self.prompts = nn.Parameter(torch.empty(m, options.length, backbone.arch.dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(m, backbone.dim).uniform_(-1, 1))

    @property
    def first(self) -> int:
        """Prompts are tokens."""
        return -1

    @property
    def dim(self) -> int:
        """The width of tokens: the read-out is the pool's own."""
        return self.backbone.arch.dim

    def select(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Select prompts by q(x), (B, D): ids (B, k), and their cosines (B, k), differentiable in the keys (eq. 3)."""
        similarity = cosine(query, self.keys)
        ids = similarity.topk(self.top_k, dim=1).indices
        return ids, similarity.gather(1, ids)

    def pull(self, similarity: Tensor) -> Losses:
        """The pull of the selected keys towards q(x), from their cosines (B, k) (eq. 5)."""
        return {"pool": -self.weight * similarity.sum(1).mean()}

    def tokens(self, x: Tensor, ids: Tensor) -> Tokens:
        """Tokens (B, 1 + k P + patches, D) with the prompts ``ids`` (B, k) before the patches (eq. 2)."""
        # As in the public code, every prompt token carries the position of the CLS token.
        prompts = self.backbone.as_tokens(self.prompts[ids].flatten(1, 2))
        return self.backbone.embed(x).insert(prompts, at=1)

    def enter(self, x: Tensor, query: Callable[[Tensor], Tensor]) -> tuple[Tokens, Losses]:
        """Tokens with the selected prompts, and the pull of the selected keys."""
        ids, similarity = self.select(query(x))
        return self.tokens(x, ids), self.pull(similarity)

    def read(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """The mean of the prompts' output tokens, or the CLS token."""
        prompts = slice(1, 1 + self.top_k * self.prompts.shape[1])
        # Not the mean over all tokens that some encoders read, which would include prompts.
        read = slice(0, 1) if self.readout == "cls" else prompts
        return self.backbone.pool(self.backbone.run(tokens, plan, start=start, read=read), at=slice(None))

    def protected(self) -> list[Tensor]:
        """Prompts and keys."""
        return [self.prompts.detach(), self.keys.detach()]

    def rows(self, x: Tensor) -> list[Tensor]:
        """The tokens other than the CLS token, prompts among them, and q(x)."""
        # Computed, not cached: a cached feature differs by the rounding of its batch, which may change on resume.
        query = self.backbone(x)
        return [self.tokens(x, self.select(query)[0]).after(1).real(), query]
