"""Pools of keyed prompts that are mixed or selected by a query, and that freeze and grow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.nn.growing import Growing, resize_parameters
from ostinato.nn.matching import cosine


class PromptPool(Growing):
    """The prompts of one layer, each with P positions of keys and values and a matching key.

    Frozen prompts come first, in the order of their creation, then trainable ones.

    Args:
        size: initial prompts, all trainable.
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
        """Number M of prompts, frozen and trainable."""
        return len(self.frozen_prompts) + len(self.prompts)

    def all_prompts(self) -> Tensor:
        """Prompts (M, 2, P, D)."""
        return torch.cat([self.frozen_prompts, self.prompts])

    def all_keys(self) -> Tensor:
        """Keys (M, D)."""
        return torch.cat([self.frozen_keys, self.keys])

    def expand(self, n: int) -> None:
        """Freeze all prompts and keys, and append ``n`` trainable ones drawn from U(-1, 1)."""
        self.frozen_prompts = torch.cat([self.frozen_prompts, self.prompts.detach()])
        self.frozen_keys = torch.cat([self.frozen_keys, self.keys.detach()])
        self.prompts = nn.Parameter(self.prompts.new_empty(n, *self.prompts.shape[1:]).uniform_(-1, 1))
        self.keys = nn.Parameter(self.keys.new_empty(n, self.keys.shape[1]).uniform_(-1, 1))

    def similarity(self, query: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Cosine (B, M) of queries (B, D) with all keys; -inf from prompt ``sizes[i]`` on, with sizes (B,)."""
        similarity = cosine(query, self.all_keys())
        if sizes is None:
            return similarity
        beyond = torch.arange(len(self), device=sizes.device) >= sizes[:, None]
        return similarity.masked_fill(beyond, -torch.inf)

    def mix(self, query: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Mix all prompts by the softmax of their similarities.

        Args:
            query: (B, D).
            sizes: (B,), at least 1; sample i uses only the first ``sizes[i]`` prompts. None for all.

        Returns:
            (B, 2, P, D) in fp32.
        """
        prompts = self.all_prompts()
        return (self.similarity(query, sizes).float().softmax(-1) @ prompts.flatten(1)).unflatten(1, prompts.shape[1:])

    def select(self, query: Tensor, k: int, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Select the ``k`` most similar prompts of each sample, concatenated along positions, the nearest first.

        Args:
            query: (B, D).
            k: prompts per sample.
            sizes: (B,), at least ``k``; sample i selects among the first ``sizes[i]`` prompts. None for all.

        Returns:
            Prompts (B, 2, k P, D) in fp32 without gradient to the keys, and similarities (B, k) with it.
        """
        similarity, ids = self.similarity(query, sizes).topk(k, dim=1)
        prompts = self.all_prompts()
        # The gradient of plain indexing takes six times as long on a CPU.
        chosen = F.embedding(ids, prompts.flatten(1)).unflatten(2, prompts.shape[1:])
        return chosen.transpose(1, 2).flatten(2, 3), similarity

    def overlap(self) -> Tensor:
        """Penalty on the overlap of the trainable keys N with the frozen keys O and each other.

        Returns:
            mean((N O^T)^2) + mean((N N^T - I)^2) of unit rows, a scalar; 0 if nothing is frozen.
        """
        if not len(self.frozen_keys):
            return self.keys.new_zeros(())
        new, old = F.normalize(self.keys, dim=-1), F.normalize(self.frozen_keys, dim=-1)
        eye = torch.eye(len(new), device=new.device)
        return (new @ old.T).square().mean() + (new @ new.T - eye).square().mean()
