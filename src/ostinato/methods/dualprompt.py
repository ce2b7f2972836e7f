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
from typing import Annotated

from torch import Tensor

from ostinato.backbones import Backbone, LayerPlan
from ostinato.choices import Part, built
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring
from ostinato.methods.parts.prefixes import Prefixes, PrefixOptions
from ostinato.methods.parts.prompts import Edits
from ostinato.nn import TaskHeads
from ostinato.nn.keys import LEARNED_KEYS, TaskKeys
from ostinato.registry import register


@register("dualprompt")
class DualPrompt(TaskInferring):
    """General and expert prefixes.

    Args:
        backbone: the frozen encoder.
        g_layers: layers with the general prefix, from 0; may be empty.
        e_layers: layers with the expert prefixes, from 0.
        g_length: positions of the general prefix.
        e_length: positions of an expert prefix.
        warm_start: begin a task's expert as a copy of the one before.
        keys: "learned" trains the key of a task by a pull of weight ``keys.pull`` (lambda); "mean" sets it, before
            training, to the mean of q(x) / |q(x)| over the task's images, which maximises their mean cosine; "classes"
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
        warm_start: bool = True,
        keys: Annotated[Part, LEARNED_KEYS] = "learned",
        pgp: float = 0.0,
    ) -> None:
        super().__init__(backbone)
        options = built(
            PrefixOptions, "method", g_layers=g_layers, e_layers=e_layers, g_length=g_length, e_length=e_length,
            warm_start=warm_start, pgp=pgp,
        )  # fmt: skip
        self.prompts = Prefixes(backbone, options)
        self.keys: TaskKeys = LEARNED_KEYS.read(keys, "method.keys").build(backbone.dim)
        self.head = TaskHeads(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's expert, key and rows of the head."""
        super().begin_task(task)
        self.prompts.begin_task()
        self.keys.begin(len(task.classes), device=self.device)
        self.head.grow(len(task.classes), device=self.device)

    def features(self, x: Tensor, prefixes: Edits) -> Tensor:
        """Features (B, D) under the prefixes of each layer."""
        return self.backbone(x, LayerPlan(prefixes))

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage, before which keys that are not learned are set; with ``pgp`` its updates are projected."""
        prepare = None if self.keys.learned else lambda: self.keys.fit(*task.extract_features(self.query), task.classes)
        return [Stage(self.loss, prepare=prepare, step=self.prompts.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes under its expert, and the pull of its key towards q(x)."""
        features = self.features(x, self.prompts.under(-1))
        return {"ce": self.head.loss(features, y)} | self.keys.pull(x, self.query)

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, keep the directions of the task's queries under its trained prompts, layer by layer."""
        self.prompts.end_task(task)

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) of the keys: the cosine of q(x) with the key of every task, where a task has one."""
        return self.keys.match(self.query(x), self.task_sizes.tolist())

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the experts of ``tasks``."""
        return self.head(self.features(x, self.prompts.under_each(tasks)))
