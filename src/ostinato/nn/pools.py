"""Pools of prompts with keys: a query mixes all prompts or selects the nearest, and a pool freezes and grows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.nn.growing import Growing, resize_parameters
from ostinato.nn.matching import cosine


class PromptPool(Growing):
    """The prompts of one layer: P positions of keys and values each, and a key to be found by.

    Prompts keep their numbers: frozen ones first, in the order in which they came, then those that train.

    Args:
        size: prompts at the start, all trainable.
        length: positions P of a prompt.
        dim: width D.
        keys: width of keys and queries; None for D.
    """

    frozen_prompts: Tensor
    frozen_keys: Tensor

    def __init__(self, size: int, length: int, dim: int, keys: int | None = None) -> None:
        super().__init__()
        self.register_buffer("frozen_prompts", torch.zeros(0, 2, length, dim))
        self.register_buffer("frozen_keys", torch.zeros(0, keys or dim))
        self.prompts = nn.Parameter(torch.empty(size, 2, length, dim).uniform_(-1, 1))
        self.keys = nn.Parameter(torch.empty(size, keys or dim).uniform_(-1, 1))
        self.register_load_state_dict_pre_hook(resize_parameters)

    def __len__(self) -> int:
        """Prompts M, frozen and trainable."""
        return len(self.frozen_prompts) + len(self.prompts)

    def all_prompts(self) -> Tensor:
        """Prompts (M, 2, P, D)."""
        return torch.cat([self.frozen_prompts, self.prompts])

    def all_keys(self) -> Tensor:
        """Keys (M, D)."""
        return torch.cat([self.frozen_keys, self.keys])

    def expand(self, n: int) -> None:
        """Freeze every prompt and key, and append ``n`` trainable ones drawn from U(-1, 1)."""
        self.frozen_prompts = torch.cat([self.frozen_prompts, self.prompts.detach()])
        self.frozen_keys = torch.cat([self.frozen_keys, self.keys.detach()])
        self.prompts = nn.Parameter(self.prompts.new_empty(n, *self.prompts.shape[1:]).uniform_(-1, 1))
        self.keys = nn.Parameter(self.keys.new_empty(n, self.keys.shape[1]).uniform_(-1, 1))

    def similarity(self, query: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Cosine (B, M) of queries (B, D) with all keys; -inf from prompt ``sizes[i]`` on, if (B,) is given."""
        similarity = cosine(query, self.all_keys())
        if sizes is None:
            return similarity
        beyond = torch.arange(len(self), device=sizes.device) >= sizes[:, None]
        return similarity.masked_fill(beyond, -torch.inf)

    def mix(self, query: Tensor, sizes: Tensor | None = None) -> Tensor:
        """All prompts, weighted by the softmax of their similarities.

        Args:
            query: (B, D).
            sizes: (B,), at least 1; only the first ``sizes[i]`` prompts take part for sample i. None for all.

        Returns:
            (B, 2, P, D) in fp32.
        """
        prompts = self.all_prompts()
        return (self.similarity(query, sizes).float().softmax(-1) @ prompts.flatten(1)).unflatten(1, prompts.shape[1:])

    def select(self, query: Tensor, k: int, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The ``k`` most similar prompts of each sample, joined along their positions, the nearest first.

        Args:
            query: (B, D).
            k: prompts per sample.
            sizes: (B,), at least ``k``; only the first ``sizes[i]`` prompts can be chosen for sample i. None for all.

        Returns:
            Prompts (B, 2, k P, D) in fp32, which carry no gradient to the keys, and similarities (B, k), which do.
        """
        similarity, ids = self.similarity(query, sizes).topk(k, dim=1)
        prompts = self.all_prompts()
        # As rows of a table: plain indexing has a gradient that takes six times as long on a CPU.
        chosen = F.embedding(ids, prompts.flatten(1)).unflatten(2, prompts.shape[1:])
        return chosen.transpose(1, 2).flatten(2, 3), similarity

    def overlap(self) -> Tensor:
        """How far the trainable keys N are from orthogonal to the frozen keys O and to each other.

        With rows of unit length, mean((N O^T)^2) + mean((N N^T - I)^2), the second term 0 for a single key.

        Returns:
            A scalar; 0 where nothing is frozen.
        """
        if not len(self.frozen_keys):
            return self.keys.new_zeros(())
        new, old = F.normalize(self.keys, dim=-1), F.normalize(self.frozen_keys, dim=-1)
        eye = torch.eye(len(new), device=new.device)
        return (new @ old.T).square().mean() + (new @ new.T - eye).square().mean()
