"""Winning SubNetworks: a binary mask per task that keeps the weights with the largest scores.

Kang, Mina, Madjid, Yoon, Hasegawa-Johnson, Hwang, Yoo: "Forget-free Continual Learning with Winning Subnetworks",
ICML 2022, https://proceedings.mlr.press/v162/kang22b.html; SoftNet: Kang, Yoon, Madjid, Hwang, Yoo: "On the
Soft-Subnetwork for Few-Shot Class Incremental Learning", ICLR 2023, https://arxiv.org/abs/2209.07529. Here as rivals of
Soft-TransFormers: over the same prompts, on the same frozen weights.

Every weight has a score. The forward pass keeps the top share by magnitude, per map; the straight-through gradient
reaches all scores. When a task ends its binary mask is stored, and the next task continues from the scores.

Differences from the papers: the pre-trained weights are frozen (WSN trains the ones no mask has claimed yet), biases
are kept whole. ``kind=hybrid`` multiplies what is kept by a learned value per task, as older code of
Soft-TransFormers does under the name WSN; ``kind=soft`` is SoftNet, where dropped weights keep a fixed share drawn
from U(0, 1).
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, LinearEdit
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.methods.soft_tf import VARIANTS
from ostinato.methods.task_edits import LinearEdits, TaskEdits
from ostinato.nn import Growing, PerTask
from ostinato.nn.masks import initial_mask, initial_scores, keep_largest
from ostinato.registry import register


class Scored(Growing):
    """The scores of one weight, and the masks of finished tasks.

    Args:
        shape: (out, in) of the weight.
        keep: share of entries kept.
        kind: "binary", "hybrid" or "soft".
        device: where it lives.
    """

    masks: Tensor
    minor: Tensor

    def __init__(self, shape: tuple[int, int], keep: float, kind: str, device: torch.device) -> None:
        super().__init__()
        self.shape, self.keep, self.kind = shape, keep, kind
        self.scores = nn.Parameter(initial_scores(*shape, device=device))
        self.values = PerTask()  # of "hybrid": T of (out, in)
        self.register_buffer("masks", torch.zeros((0, *shape), dtype=torch.bool, device=device))
        self.register_buffer("minor", torch.rand(shape if kind == "soft" else (0, 0), device=device))

    def begin(self) -> None:
        """Make room for a task."""
        if self.kind == "hybrid":
            self.values.add(initial_mask(*self.shape, "uniform", device=self.scores.device))

    def end(self) -> None:
        """Store the binary mask of the task that ends."""
        self.masks = torch.cat([self.masks, keep_largest(self.scores.detach(), self.keep)[None] > 0])

    def mask(self, task: int) -> Tensor:
        """The mask (out, in) of a task, from the scores while it is being learned."""
        kept = self.masks[task].float() if task < len(self.masks) else keep_largest(self.scores, self.keep)
        if self.kind == "hybrid":
            return kept * self.values[task]
        return kept + self.minor * (1 - kept) if self.kind == "soft" else kept


@register("wsn")
class WSN(TaskEdits):
    """Binary masks of the top-scored weights, per task.

    Args:
        backbone: the frozen encoder.
        variant: masked maps: "attn" (queries, keys, values), "attn+proj", or "ff" with the MLP as well.
        keep: share of weights kept per map (c in the paper), in (0, 1].
        kind: "binary" (WSN), "hybrid", or "soft" (SoftNet).
        more: options of the prompts and of task inference, see :class:`TaskEdits`.
    """

    superposes = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        variant: Literal["attn", "attn+proj", "ff"] = "attn+proj",
        keep: float = 0.9,
        kind: Literal["binary", "hybrid", "soft"] = "binary",
        **more: Any,
    ) -> None:
        super().__init__(backbone, **more)
        if variant not in VARIANTS:
            raise InputError(f"method.variant must be one of {list(VARIANTS)}, got {variant!r}.")
        if not 0 < keep <= 1:
            raise InputError(f"method.keep must be a share in (0, 1], got {keep}.")
        if kind not in ("binary", "hybrid", "soft"):
            raise InputError(f"method.kind must be 'binary', 'hybrid' or 'soft', got {kind!r}.")
        maps, shape_of = VARIANTS[variant], backbone.arch.shape_of
        self.maps = nn.ModuleDict(
            {
                str(i): nn.ModuleDict({name: Scored(shape_of(name), keep, kind, self.device) for name in maps})
                for i in self.layers
            }
        )

    def _scored(self) -> list[tuple[int, str, Scored]]:
        banks = [(int(i), name, bank) for i, maps in self.maps.items() for name, bank in maps.items()]  # pyright: ignore
        return cast("list[tuple[int, str, Scored]]", banks)

    def begin_task(self, task: LearnTask) -> None:
        """Make room for the task; its scores go on from the ones before."""
        super().begin_task(task)
        for _, _, bank in self._scored():
            bank.begin()

    def end_task(self, task: LearnTask) -> None:
        """Store the task's masks."""
        super().end_task(task)
        for _, _, bank in self._scored():
            bank.end()

    def linear(self, task: int) -> LinearEdits:
        """The masks of a task."""
        edits: LinearEdits = {i: {} for i in self.layers}
        for i, name, bank in self._scored():
            edits[i][name] = LinearEdit(mask=bank.mask(task % self.n_tasks))
        return edits
