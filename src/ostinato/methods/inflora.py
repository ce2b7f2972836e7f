"""InfLoRA: low-rank updates in a subspace that does not reach the inputs of old tasks.

Liang, Li: "InfLoRA: Interference-Free Low-Rank Adaptation for Continual Learning", CVPR 2024,
https://arxiv.org/abs/2404.00228.

Keys and values of all layers become ``W + sum_{s <= t} B_s A_s``. A_t is designed before the task and frozen; B_t
starts at 0 and is trained with the task's head. With H = sum x x^T over the inputs x of a layer's attention, by the
task's images under the model so far, and M an orthonormal basis of the inputs of old tasks,

    A_t = (the r leading left singular vectors of (I - M M^T) H)^T / sqrt(3),

so that A_t x = 0 for old inputs, and the update of task t does not interfere with old tasks. After the task, H is
computed again, and M takes the fewest leading directions of (I - M M^T) H that raise its share of the energy |H|^2 to
eps_t (DualGPM; Liang, Li: "Adaptive Plasticity Improvement for Continual Learning", CVPR 2023).

Differences from the paper: eps_t rises by ``energy_step`` per task up to 1, as the number of tasks is unknown; the
default is that of ten tasks, from 0.95 to 1. DualGPM stores M or its complement, whichever is smaller, with the same
A_t; here it is M. H is that of images under the test transform (the public code augments them). The public code also
fits k-means keys, which nothing reads. The schedule is applied per step. Pixels are normalised as the weights expect. A
task of one class competes with the frozen rows of earlier classes. The recipe is the public code's for CIFAR-100.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_positive
from ostinato.methods.parts.banks import LowRank, at
from ostinato.nn import TaskHeads
from ostinato.nn.projection import Covariance, Subspace
from ostinato.registry import register

MAPS = ("k", "v")


@register("inflora")
class InfLoRA(Method):
    """Low-rank updates of keys and values, orthogonal to the inputs of old tasks.

    Args:
        backbone: the frozen encoder.
        rank: r of an update.
        energy: share eps of the energy of the first task's inputs that later updates must avoid, in (0, 1].
        energy_step: added to eps per task, up to 1.
    """

    recipe = Recipe(epochs=20, batch_size=128, lr=5e-4, schedule="quarter_cosine")

    def __init__(self, backbone: Backbone, *, rank: int = 10, energy: float = 0.95, energy_step: float = 0.005) -> None:
        super().__init__(backbone)
        check_positive(rank=rank)
        if rank > backbone.arch.dim:
            raise InputError(f"method.rank must be at most {backbone.arch.dim}, the width of the backbone, got {rank}.")
        if not 0 < energy <= 1 or not 0 <= energy_step <= 1:
            raise InputError(
                f"method.energy must lie in (0, 1] and method.energy_step in [0, 1], got {energy} and {energy_step}."
            )
        self.rank, self.energy, self.energy_step = rank, energy, energy_step
        self.layers = range(backbone.arch.depth)
        self.bank = LowRank(backbone.arch, self.layers, MAPS, rank, 1.0, trains_down=False)
        self.old_inputs = nn.ModuleList(Subspace(backbone.arch.dim) for _ in self.layers)
        self.head = TaskHeads(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add updates and rows of the head."""
        super().begin_task(task)
        self.bank.begin_task(self.device)
        self.head.grow(len(task.classes), device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; A is designed before it."""
        return [Stage(self.loss, prepare=lambda: self._design(task))]

    def _spaces(self) -> list[Subspace]:
        return list(self.old_inputs)  # pyright: ignore[reportReturnType]

    def _design(self, task: LearnTask) -> None:
        for layer, (space, h) in enumerate(zip(self._spaces(), self.inputs(task), strict=True)):
            down = space.leading(h @ h, self.rank) / 3**0.5
            for name in MAPS:
                at(self.bank.down, layer, name)[-1].copy_(down)

    @torch.no_grad()
    def inputs(self, task: LearnTask) -> list[Tensor]:
        """H (D, D) of every layer, in fp64, of all training samples under the model so far."""
        sums = [Covariance(self.backbone.arch.dim, device=self.device) for _ in self.layers]
        plan = self.bank.summed()
        for x, _ in task.eval_batches():
            tokens = self.backbone.embed(x)
            for layer in self.layers:
                sums[layer].add(tokens._replace(h=self.backbone.attention_input(layer, tokens.h)).real())
                tokens = self.backbone.run(tokens, plan, start=layer, stop=layer + 1)
        return [each.matrix() for each in sums]

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) under the updates of all tasks."""
        return self.backbone(x, self.bank.summed())

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.features(x), y)}

    def end_task(self, task: LearnTask) -> None:
        """Add the directions of the task's inputs to those that later updates avoid."""
        energy = min(1.0, self.energy + self.energy_step * task.index)
        for space, h in zip(self._spaces(), self.inputs(task), strict=True):
            space.add(h @ h, energy)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x))
