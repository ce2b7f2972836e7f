"""CL-LoRA: a shared low-rank adapter in the lower layers, one per task in the upper layers.

He, Duan, Zhu: "CL-LoRA: Continual Low-Rank Adaptation for Rehearsal-Free Class-Incremental Learning", CVPR 2025,
https://arxiv.org/abs/2505.24816.

Queries and values become W x + m U P x. In the shared layers m is 1, P is fixed with orthonormal rows, and all tasks
train U. In the upper layers every task has its own P and U, and weights mu per layer, learned and then frozen, in place
of m. Training classifies with a temporary cosine head. From the second task on, features after the shared layers are
distilled from the adapter of the task before. The gradient of this term is weighted by the old adapter's row norms
("reassignment") and has its own optimiser step before that of the cross-entropy. A test image passes the shared layers
once and the upper ones under every task; class c of task s scores the cosine of task s's feature with the mean of c's
training features.

Differences from the paper and its public code: the recipe is the code's for CIFAR-100, whose cosine changes the rate
once per epoch (``train.schedule=cosine`` changes it per step, with a lower mean rate in few epochs). Both gradients are
taken at the same weights; the code changes weights between a forward and its backward pass, which newer versions of
torch refuse. ``train.clip`` bounds the gradient of the cross-entropy, not that of
distillation. Pixels are normalised as the weights expect (``preprocess=unit`` restores [0, 1]). A task of one class has
no loss: only its mean is learned. Reassignment has no effect while the old adapter is zero. Kept from the code: P from
uniform instead of normal numbers, teacher logits that train the head, two steps and so two weight decays per batch for
parameters that both gradients reach, weights mu of the unedited keys that only the orthogonality term uses, and class
means that are not updated when the shared adapter changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone, Edit, LayerPlan, LinearEdit, Tokens
from ostinato.choices import Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_layers, check_positive
from ostinato.methods.parts.frozen_term import term_choice
from ostinato.nn import ClassMeans, PerTask, cosine
from ostinato.nn.distillation import distillation
from ostinato.nn.proxy import CosineProxy
from ostinato.nn.routing import traced
from ostinato.registry import register

BUDGET = 2**25
"""Largest number of values in the token states (tasks, B, N, D) of one pass."""

QV = slice(0, 3, 2)
"""Rows of q and v in the block weights; the row of k lies between them."""


TERM = term_choice(1 / 70)
"""Terms of the plain encoder; its weight is for cosines."""


@register("cl_lora")
class CLLoRA(Method):
    """Shared and task-specific low-rank adapters of queries and values.

    Args:
        backbone: the frozen encoder.
        rank: r of every adapter.
        shared_layers: layers with the shared adapter, from 0.
        specific_layers: layers with an adapter per task, all above the shared ones.
        kd: weight of distillation; 0 omits its step.
        tau: temperature of distillation.
        ortho: weight of the orthogonality term of the block weights of different tasks.
        reassign: weight the gradient of distillation by the old adapter's row norms.
        block_weights: learn mu; False fixes it to 1, which omits the orthogonality term.
        down_init: entries of the matrix whose orthonormal factor is P: "uniform", U(0, 1), as in the public code, where
            the first row is close to constant; or "normal", N(0, 1).
        teacher_detached: detach the teacher's logits, so that distillation trains the head through the student only.
        frozen_term: scores of the plain encoder to add: "none", or "discriminant", see
            :class:`DiscriminantTermOptions`.
    """

    no_effect: ClassVar = {
        "tau": ("kd", (0,)), "reassign": ("kd", (0,)), "teacher_detached": ("kd", (0,)),
        "ortho": ("block_weights", (False,)),
    }  # fmt: skip
    recipe = Recipe(
        epochs=30, batch_size=64, lr=0.03, optimizer="sgd", momentum=0.9, weight_decay=1e-4,
        schedule="cosine_per_epoch",
    )  # fmt: skip
    scores_are_logits = False

    shared_down: Tensor
    teacher_up: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        rank: int = 8,
        shared_layers: tuple[int, ...] = (0, 1, 2, 3, 4, 5),
        specific_layers: tuple[int, ...] = (6, 7, 8, 9, 10, 11),
        kd: float = 5.0,
        tau: float = 2.0,
        ortho: float = 1e-4,
        reassign: bool = True,
        block_weights: bool = True,
        down_init: Literal["uniform", "normal"] = "uniform",
        teacher_detached: bool = False,
        frozen_term: Annotated[Part, TERM] = "none",
    ) -> None:
        super().__init__(backbone)
        check_positive(rank=rank)
        width = backbone.arch.dim
        if rank > width:
            raise InputError(f"method.rank must be at most {width}, the width of the backbone, got {rank}.")
        self.shared_layers = check_layers("shared_layers", shared_layers, backbone.arch.depth)
        self.specific_layers = check_layers("specific_layers", specific_layers, backbone.arch.depth)
        if not shared_layers or not specific_layers or max(shared_layers) >= min(specific_layers):
            raise InputError(
                "method.shared_layers and method.specific_layers must each name a layer, and all shared layers must "
                f"lie below all specific ones, got {list(shared_layers)} and {list(specific_layers)}."
            )
        if kd < 0 or ortho < 0 or tau <= 0:
            raise InputError(
                f"method.kd and method.ortho must not be negative and method.tau must be positive, got {kd}, {ortho} "
                f"and {tau}."
            )
        self.rank, self.kd, self.tau, self.ortho, self.reassign = rank, kd, tau, ortho, reassign
        self.learns_weights, self.down_init, self.teacher_detached = block_weights, down_init, teacher_detached
        self.entry, self.exit = min(shared_layers), max(shared_layers) + 1
        self.register_buffer("shared_down", self._orthonormal(len(shared_layers)))  # (layers, q and v, r, D)
        self.shared_up = nn.Parameter(torch.zeros(len(shared_layers), 2, width, rank))
        self.register_buffer("teacher_up", torch.zeros_like(self.shared_up))
        self.downs, self.ups, self.mu = PerTask(), PerTask(), PerTask()  # (layers, 2, r, D), (.., D, r), (3, layers)
        self.proxy = CosineProxy(backbone.dim)
        self.class_means = ClassMeans(backbone.dim)
        self.frozen_term = TERM.read(frozen_term, "method.frozen_term").build(backbone.dim)

    def _orthonormal(self, n_layers: int) -> Tensor:
        """Matrices P (layers, 2, r, D) with P P^T = I."""
        draw = torch.rand if self.down_init == "uniform" else torch.randn
        columns = draw(n_layers, 2, self.backbone.arch.dim, self.rank, device=self.device)
        return torch.linalg.qr(columns).Q.mT.contiguous()

    def begin_task(self, task: LearnTask) -> None:
        """Copy the shared adapter as the teacher; add adapters, block weights and a temporary head."""
        super().begin_task(task)
        n = len(self.specific_layers)
        self.teacher_up = self.shared_up.detach().clone()
        self.downs.add(self._orthonormal(n))
        self.ups.add(torch.zeros(n, 2, self.backbone.arch.dim, self.rank, device=self.device))
        if self.learns_weights:
            self.mu.add(torch.empty(3, n, device=self.device).uniform_(0.5, 1.5))
        self.proxy.reset(len(task.classes))
        self.class_means.grow(len(task.classes))

    def shared(self, up: Tensor) -> LayerPlan:
        """Edits of the shared layers with up-projections ``up`` (layers, 2, D, r)."""
        adapters = zip(self.shared_layers, self.shared_down, up, strict=True)
        return LayerPlan({layer: _edit(p[0], u[0], p[1], u[1]) for layer, p, u in adapters})

    def specific(self, down: Tensor, up: Tensor, mu: Tensor) -> LayerPlan:
        """Edits of the specific layers: P (..., layers, 2, r, D), U (..., layers, 2, D, r), mu (..., 3, layers)."""
        scaled = mu[..., QV, :].mT[..., None, None] * up
        return LayerPlan(
            {
                layer: _edit(*(a[..., i, j, :, :] for j in range(2) for a in (down, scaled)))
                for i, layer in enumerate(self.specific_layers)
            }
        )

    def newest(self, tokens: Tokens) -> Tensor:
        """Features (B, D) of states after the shared layers, under the newest task's adapters."""
        plan = self.specific(self.downs[-1], self.ups[-1], self.block_weights()[-1])
        return self.backbone.features(tokens, plan, start=self.exit)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes; from the second task on, also distillation and orthogonality."""
        plain = self.states(x, self.entry)
        tokens = self.backbone.run(plain, self.shared(self.shared_up), start=self.entry, stop=self.exit)
        first = self.n_seen - len(self.proxy.weight)
        losses = {"ce": F.cross_entropy(self.proxy(self.newest(tokens)), y - first)}
        if self.n_tasks > 1 and self.kd:
            with torch.no_grad():
                old = self.backbone.run(plain, self.shared(self.teacher_up), start=self.entry, stop=self.exit)
            teacher, student = (self.proxy(self.backbone.pool(t)) for t in (old, tokens))
            teacher = teacher.detach() if self.teacher_detached else teacher
            losses["kd"] = self.kd * distillation(student, teacher, self.tau)
        if len(self.mu) > 1 and self.ortho:
            mu = self.mu.stacked().flatten(1)
            losses["ortho"] = self.ortho * cosine(mu[-1:], mu[:-1]).abs().mean()
        return losses

    def omega(self) -> Tensor:
        """Weights (layers, 2, D) of gradient rows: the teacher's row norms over their mean, or 1 if all are 0."""
        norms = self.teacher_up.norm(dim=-1)
        mean = norms.mean(-1, keepdim=True)
        return torch.where(mean > 0, norms / mean, 1.0)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; with distillation, two consecutive optimiser steps per batch."""
        if len(task.classes) == 1:
            return []
        if self.n_tasks == 1 or not self.kd:
            return [Stage(self.loss)]
        rows = self.omega()[..., None] if self.reassign else 1.0
        reached = [self.shared_up, self.proxy.weight, self.proxy.scale]
        distilled: dict[nn.Parameter, Tensor] = {}  # gradient of distillation, summed over the micro-batches of a step

        def backward(losses: Losses) -> None:
            grads = torch.autograd.grad(losses["kd"], reached, retain_graph=True)
            for p, g in zip(reached, (rows * grads[0], *grads[1:]), strict=True):
                distilled[p] = distilled[p] + g if p in distilled else g
            torch.stack([term for name, term in losses.items() if name != "kd"]).sum().backward()

        def step(optimizer: torch.optim.Optimizer) -> None:
            params = [p for group in optimizer.param_groups for p in group["params"]]
            grads = [p.grad for p in params]
            for p in params:
                p.grad = distilled.get(p)  # the optimiser skips None: no decay, no momentum
            optimizer.step()
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            optimizer.step()
            distilled.clear()

        return [Stage(self.loss, backward=backward, step=step, gradients=lambda: list(distilled.values()))]

    def end_task(self, task: LearnTask) -> None:
        """Compute the task's class means and statistics, and drop its head."""

        def features(x: Tensor) -> Tensor:
            plain, plan = self.states(x, self.entry), self.shared(self.shared_up)
            return self.newest(self.backbone.run(plain, plan, start=self.entry, stop=self.exit))

        self.class_means.update(*task.extract_features(features))
        self.frozen_term.end_task(task, self.query)
        self.proxy.reset(0)

    @property
    def refines(self) -> str:
        """The class means."""
        return "its class means; the adapters stay as they are"

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the class means, each under the adapters of its class's task."""
        found, labels = task.extract_features(lambda x: self.features(x).movedim(0, 1).flatten(1))
        under = found.unflatten(1, (self.n_tasks, -1))
        self.class_means.update(
            under[torch.arange(len(labels), device=labels.device), self.task_of_class[labels]], labels
        )
        self.frozen_term.refine(task, self.query)

    def features(self, x: Tensor) -> Tensor:
        """Features (T, B, D) of images under the adapters of every task; the layers below run once."""
        first = min(self.specific_layers)
        plain = self.states(x, self.entry)
        states = self.backbone.run(plain, self.shared(self.shared_up), start=self.entry, stop=first)
        # One task needs no more memory than the layers below, so only tasks are split.
        size = self.n_tasks if traced() else max(1, BUDGET // states.h.numel())
        mu, parts = self.block_weights(), []
        for i in range(0, self.n_tasks, size):
            chunk = slice(i, i + size)
            down, up = (torch.stack(tuple(bank)[chunk])[:, None] for bank in (self.downs, self.ups))
            tokens = states.under(len(down))
            parts.append(self.backbone.features(tokens, self.specific(down, up, mu[chunk, None]), start=first))
        return torch.cat(parts)

    def scores(self, x: Tensor) -> Tensor:
        """Cosine (B, n_seen) of each class's mean with the feature under its task's adapters, with the frozen term."""
        means = self.class_means.means().split(self.classes_per_task)
        cosines = torch.cat([cosine(f, m) for f, m in zip(self.features(x), means, strict=True)], dim=1)
        return self.frozen_term.add(cosines, x, self.query)

    def block_weights(self) -> Tensor:
        """Block weights mu (T, 3, specific layers) of all tasks for q, k (unused) and v; 1 if not learned."""
        if not self.learns_weights:
            return torch.ones(self.n_tasks, 3, len(self.specific_layers), device=self.device)
        return self.mu.stacked()

    @torch.no_grad()
    def adapter_norms(self) -> Tensor:
        """Frobenius norms ||mu U P|| (T, specific layers, 2) of every task's updates of q and v."""
        down, up = self.downs.stacked(), self.ups.stacked()
        # ||U P||^2 = tr(U^T U P P^T), without the D x D product.
        squares = ((up.mT @ up) * (down @ down.mT)).sum((-2, -1)).clamp(min=0)
        return self.block_weights()[:, QV].mT.abs() * squares.sqrt()


def _edit(q_down: Tensor, q_up: Tensor, v_down: Tensor, v_up: Tensor) -> Edit:
    """Low-rank updates of queries and values."""
    return Edit(linear={"q": LinearEdit(down=q_down, up=q_up), "v": LinearEdit(down=v_down, up=v_up)})
