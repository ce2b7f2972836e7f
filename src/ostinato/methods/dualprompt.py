"""DualPrompt: general prompts for all tasks, expert prompts for each.

Wang, Zhang, Ebrahimi, Sun, Zhang, Lee, Ren, Su, Perot, Dy, Pfister: "DualPrompt: Complementary Prompting for
Rehearsal-free Continual Learning", ECCV 2022, https://arxiv.org/abs/2204.04799.

Prefixes are joined to keys and values after the projections (prefix tuning). Lower layers hold a general
prefix that all tasks train; further layers hold an expert prefix per task, found at test by the key with the
largest cosine to the frozen feature q(x). Training uses the expert of the current task; the loss is
cross-entropy over its classes plus a pull of its key towards q(x).

Option ``pgp``: Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI. The attention that old samples x pay to a prefix stays as it is where the
update of the prefix's keys satisfies (x W_q) dP_K^T = 0; values are free. From the second task on, updates are
therefore projected off the directions that the queries of earlier tasks use (see ``nn/projection.py``).

Differences from the paper: layers count from 0, so the paper's 1-2 and 3-5 are (0, 1) and (2, 3, 4). The pool grows by
one expert per task. Lengths and recipe are those of the common PyTorch code for CIFAR-100: 5 positions per prefix (the
paper uses longer experts), learning rate 0.03 at batch size 256 scaled to batch size 24, gradients clipped at norm 1,
U(-1, 1) initialisation, a new expert as a copy of the one before. Unlike there, the expert is chosen per sample instead
of by a vote of the batch, key and value prefixes keep their roles for every sample, and pixels are normalised as the
weights expect. A task of one class competes with the frozen rows of earlier classes. Key and prefixes share no
parameter but meet in the clipped gradient norm, so ``keys="mean"`` can set a key to the optimum of its pull instead of
training it; one key cannot stand for a task of unrelated classes, so ``keys="classes"`` keeps one for each, and
``keys="gaussians"`` also weighs directions by how much classes vary along them. PGP: the condition holds in every head,
since each head attends by itself, not only for their sum; the directions come from the covariance of all tokens'
queries, where the public code decomposes a matrix between samples; and the update is projected, not the gradient,
because Adam's rescaling leaves the subspace.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone, Edit, LayerPlan, prefix_from
from ostinato.errors import InputError
from ostinato.methods.alignment import collect
from ostinato.methods.base import (
    LearnTask,
    Losses,
    Recipe,
    Stage,
    TaskInferring,
    check_layers,
    check_positive,
    plain_step,
)
from ostinato.nn import PerTask, TaskHeads, cosine
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.matching import nearest_per_task
from ostinato.nn.projection import Covariance, Subspaces, sampled
from ostinato.registry import register

Keys = Literal["learned", "mean", "classes", "gaussians"]

IMAGES = 256
"""Training images of a task whose queries are collected for the projection, with all their tokens."""


@register("dualprompt")
class DualPrompt(TaskInferring):
    """General and expert prefixes.

    Args:
        backbone: the frozen encoder.
        g_layers: layers with the general prefix, from 0; may be empty.
        e_layers: layers with the expert prefixes, from 0.
        g_length: positions of the general prefix.
        e_length: positions of an expert prefix.
        pull: weight of the key term (lambda).
        warm_start: begin a task's expert as a copy of the one before.
        keys: "learned" trains the key of a task by the pull; "mean" sets it, before training, to the mean of
            q(x) / |q(x)| over the task's images, which maximises their mean cosine, and drops the pull; "classes"
            has such a key for every class of the task, of which the nearest counts; "gaussians" has a Gaussian of
            q(x) / |q(x)| for every class, with one covariance for all, and takes the likeliest.
        pgp: share of the energy of old queries that key prefixes must leave alone, in (0, 1]; 0 is off. Experts
            begin as copies then, so it needs ``warm_start``.
    """

    recipe = Recipe(epochs=5, batch_size=24, lr=0.03 * 24 / 256, optimizer="adam", clip=1.0)

    def __init__(
        self,
        backbone: Backbone,
        *,
        g_layers: tuple[int, ...] = (0, 1),
        e_layers: tuple[int, ...] = (2, 3, 4),
        g_length: int = 5,
        e_length: int = 5,
        pull: float = 1.0,
        warm_start: bool = True,
        keys: Keys = "learned",
        pgp: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        check_positive(g_length=g_length, e_length=e_length)
        self.g_layers = check_layers("g_layers", g_layers, backbone.arch.depth)
        self.e_layers = check_layers("e_layers", e_layers, backbone.arch.depth)
        if shared := set(g_layers) & set(e_layers):
            raise InputError(f"method.g_layers and method.e_layers must not share layers, both have {sorted(shared)}.")
        if g_layers and not e_layers:
            raise InputError("method.e_layers must name at least one layer.")
        if keys not in get_args(Keys):
            raise InputError(f"method.keys must be one of {list(get_args(Keys))}, got {keys!r}.")
        if not 0 <= pgp <= 1:
            raise InputError(f"method.pgp must be 0 (off) or a share of energy in (0, 1], got {pgp}.")
        if pgp and not warm_start:
            raise InputError("method.pgp keeps experts near the one before: it needs method.warm_start=true.")
        self.pull, self.warm_start, self.learns_keys, self.pgp = pull, warm_start, keys == "learned", pgp
        self.e_shape = (len(e_layers), 2, e_length, backbone.dim)
        self.general = nn.Parameter(torch.empty(len(g_layers), 2, g_length, backbone.dim).uniform_(-1, 1))
        self.experts = PerTask()  # T of (E layers, 2, P, D)
        self.keys = PerTask(trains=self.learns_keys)  # T of (D,)
        self.class_keys = PerTask(trains=False) if keys == "classes" else None  # T of (classes, D)
        self.discriminant = LinearDiscriminant(backbone.dim) if keys == "gaussians" else None
        self.head = TaskHeads(backbone.dim)
        self.spaces = Subspaces(len(g_layers) + len(e_layers) if pgp else 0, backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's expert, key and rows of the head."""
        super().begin_task(task)
        fresh = torch.empty(self.e_shape, device=self.device).uniform_(-1, 1)
        copy = self.warm_start and len(self.experts) > 0
        self.experts.add(self.experts[-1].detach().clone() if copy else fresh)
        self.keys.add(torch.empty(self.backbone.dim, device=self.device).uniform_(-1, 1))
        if self.class_keys is not None:
            self.class_keys.add(torch.zeros(len(task.classes), self.backbone.dim, device=self.device))
        self.add_classes(task)

    def add_classes(self, task: LearnTask) -> None:
        """Add the task's rows of the head."""
        self.head.grow(len(task.classes), device=self.device)

    def plan(self, experts: Tensor) -> LayerPlan:
        """Prefixes per layer for experts (B | 1, E layers, 2, P, D)."""
        heads, n = self.backbone.arch.heads, len(experts)
        edits = {
            layer: Edit(prefix=prefix_from(g.expand(n, *g.shape), heads))  # of one shape with the experts
            for layer, g in zip(self.g_layers, self.general, strict=True)
        }
        edits |= {layer: Edit(prefix=prefix_from(experts[:, i], heads)) for i, layer in enumerate(self.e_layers)}
        return LayerPlan(edits)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; with ``pgp`` its updates are projected from the second task on."""
        prepare = None if self.learns_keys else partial(self._set_keys, task)
        step = self._step if self.pgp and task.index else plain_step
        return [Stage(self.loss, prepare=prepare, step=step)]

    @torch.no_grad()
    def _set_keys(self, task: LearnTask) -> None:
        """The key that maximises mean_b cos(q_b, K) = (mean_b q_b / |q_b|) K^T / |K| over the task's images."""
        query, labels = collect(self, task, self.query)
        query = F.normalize(query.double(), dim=-1)
        self.keys[-1].copy_(query.mean(0))
        if self.class_keys is not None:
            for row, c in zip(self.class_keys[-1], task.classes, strict=True):
                row.copy_(query[labels == c].mean(0))
        if self.discriminant is not None:
            self.discriminant.add(query, labels, len(task.classes))

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, projected for the key half of each layer's prefix (P, D)."""
        self.spaces.step(optimizer, [*self.general.detach()[:, 0], *self.experts[-1].detach()[:, 0]])

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and, where the key is learned, the pull of its key."""
        features = self.backbone(x, self.plan(self.experts[-1][None]))
        losses = {"ce": self.head.loss(features, y)}
        if self.learns_keys:
            losses["pull"] = -self.pull * cosine(self.query(x), self.keys[-1][None]).mean()
        return losses

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, add the directions of the task's queries under its trained prompts, layer by layer."""
        super().end_task(task)
        if not self.pgp:
            return
        layers = (*self.g_layers, *self.e_layers)
        arch = self.backbone.arch
        sums = {layer: Covariance(arch.dim, device=self.device, blocks=arch.heads) for layer in layers}
        plan = self.plan(self.experts[-1][None])
        n = len(task.train)  # pyright: ignore[reportArgumentType]
        for x in sampled(task.batches(), n, IMAGES):
            tokens, at = self.backbone.embed(x), 0
            for layer in sorted(layers):
                tokens, at = self.backbone.run(tokens, plan, start=at, stop=layer), layer
                sums[layer].add(tokens._replace(h=self.backbone.queries(layer, tokens.h)).real())
        self.spaces.add(sums.values(), [self.pgp] * len(sums))

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) for every task, see :meth:`match`."""
        return self.match(self.query(x))

    def match(self, query: Tensor) -> Tensor:
        """Cosine (B, T) of q(x) with the key of every task; the largest cosine or log-likelihood of its classes."""
        if self.class_keys is not None:
            each = cosine(query, self.class_keys.joined())
        elif self.discriminant is not None:
            each = self.discriminant(F.normalize(query.float(), dim=-1))
        else:
            return cosine(query, self.keys.stacked())
        return nearest_per_task(each, self.task_sizes.tolist())

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the experts of ``tasks``."""
        return self.head(self.backbone(x, self.plan(self.experts.stacked()[tasks])))
