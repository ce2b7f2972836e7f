"""SD-LoRA: low-rank updates with directions that are frozen and magnitudes that are learned again.

Wu, Piao, Huang, Wang, Li, Pfister, Meng, Ma, Wei: "SD-LoRA: Scalable Decoupled Low-Rank Adaptation for Class
Incremental Learning", ICLR 2025, https://arxiv.org/abs/2501.13198.

Queries and values of all layers become, in task t,

    W + sum_{s < t} a_s B_s A_s / (|B_s| |A_s|) + a_t B_t A_t,

with Frobenius norms. The directions of earlier tasks are frozen; their magnitudes a_s, one number per task for all
layers and maps, are trained again in every task from ``magnitude`` on, with B_t, A_t and a_t. One pass scores all
classes, and no task is inferred.

Differences from the paper: there is neither the decreasing rank of SD-LoRA-RR nor the merging of directions of
SD-LoRA-KD. The recipe is the public code's for CIFAR-100, with SGD (the paper names Adam). Pixels are normalised as the
weights expect. A task of one class competes with the frozen rows of earlier classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, check_positive
from ostinato.methods.parts.banks import LowRank
from ostinato.nn import TaskHeads
from ostinato.nn.growing import resize_parameters
from ostinato.registry import register

MAPS = ("q", "v")


@register("sd_lora")
class SDLoRA(Method):
    """Low-rank updates of queries and values with decoupled magnitudes and directions.

    Args:
        backbone: the frozen encoder.
        rank: r of an update.
        magnitude: a of every task when a task begins.
    """

    recipe = Recipe(epochs=20, batch_size=128, lr=8e-3, optimizer="sgd")

    def __init__(self, backbone: Backbone, *, rank: int = 10, magnitude: float = 0.8) -> None:
        super().__init__(backbone)
        check_positive(rank=rank)
        if magnitude <= 0:
            raise InputError(f"method.magnitude must be positive, got {magnitude}.")
        self.magnitude = magnitude
        width = backbone.arch.dim
        self.bank = LowRank(backbone.arch, range(backbone.arch.depth), MAPS, rank, 1.0, bound=width**-0.5)
        self.magnitudes = nn.Parameter(torch.zeros(0))  # a (T,)
        self.head = TaskHeads(backbone.dim)
        self.register_load_state_dict_pre_hook(resize_parameters)

    def begin_task(self, task: LearnTask) -> None:
        """Add an update and rows of the head; reset all magnitudes."""
        super().begin_task(task)
        self.bank.begin_task(self.device)
        self.magnitudes = nn.Parameter(torch.full((self.n_tasks,), self.magnitude, device=self.device))
        self.head.grow(len(task.classes), device=self.device)

    def weights(self, down: Tensor, up: Tensor) -> Tensor:
        """Weights (T,) of the updates of a map with factors A (T, r, in) and B (T, out, r)."""
        norms = (down.detach().flatten(1).norm(dim=1) * up.detach().flatten(1).norm(dim=1)).clamp(min=1e-12)
        newest = torch.arange(len(norms), device=norms.device) == len(norms) - 1
        return self.magnitudes / torch.where(newest, 1.0, norms)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) under the updates of all tasks."""
        return self.backbone(x, self.bank.summed(self.weights))

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.features(x), y)}

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x))
