"""DualPrompt: general prompts for all tasks, expert prompts for each.

Wang, Zhang, Ebrahimi, Sun, Zhang, Lee, Ren, Su, Perot, Dy, Pfister: "DualPrompt: Complementary Prompting for
Rehearsal-free Continual Learning", ECCV 2022, https://arxiv.org/abs/2204.04799.

Prefixes are joined to keys and values after the projections (prefix tuning). Lower layers have a general prefix that
all tasks train, further layers an expert prefix per task. At test the key with the largest cosine to the frozen feature
q(x) chooses the expert. Training uses the expert of the current task; the loss is cross-entropy over its classes plus a
pull of its key towards q(x).

Option ``pgp``: Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI. The attention of old samples x to a prefix does not change if the update of
its keys satisfies (x W_q) dP_K^T = 0; values are free. From the second task on, updates are therefore projected off the
directions of the queries of earlier tasks (see ``nn/projection.py``).

Differences from the paper: layers count from 0, so the paper's 1-2 and 3-5 are (0, 1) and (2, 3, 4). The pool grows by
one expert per task. Lengths and recipe are those of the common PyTorch code for CIFAR-100: 5 positions per prefix (the
paper uses longer experts), learning rate 0.03 at batch size 256 scaled to batch size 24, gradients clipped at norm 1,
U(-1, 1) initialisation, a new expert as a copy of the one before. Unlike there, the expert is chosen per sample instead
of by a vote of the batch, key and value prefixes keep their roles for every sample, and pixels are normalised as the
weights expect. A task of one class competes with the frozen rows of earlier classes. Keys and prefixes share no
parameter, only the clipped gradient norm, so ``keys="mean"`` sets a key to the optimum of its pull instead of training
it. One key cannot represent a task of unrelated classes: ``keys="classes"`` has a mean per class, and
``keys="gaussians"`` also weighs directions by the variation of classes along them. PGP: the condition holds in every
attention head, not only for their sum. Directions come from the covariance of all tokens' queries; the public code
decomposes a matrix between samples. The update is projected, not the gradient, because Adam's rescaling leaves the
subspace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from torch import Tensor

from ostinato.backbones import Backbone, LayerPlan
from ostinato.choices import Part, built
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring
from ostinato.methods.parts.prefixes import Prefixes, PrefixOptions
from ostinato.methods.parts.prompts import Edits
from ostinato.nn import TaskHeads
from ostinato.nn.keys import LEARNED_KEYS, TaskKeys
from ostinato.registry import register


class DualPromptOptions(PrefixOptions, frozen=True):
    """Options of the prefixes.

    Attributes:
        e_layers: layers with expert prefixes, from 0.
    """

    e_layers: tuple[int, ...] = (2, 3, 4)


@register("dualprompt")
class DualPrompt(TaskInferring):
    """General and expert prefixes.

    Args:
        backbone: the frozen encoder.
        keys: task keys: "learned" trains a key per task by a pull of weight ``keys.pull`` (lambda); "mean" sets it
            before training to the mean of q(x) / |q(x)| over the task's images, which maximises their mean cosine;
            "classes" has such a mean per class and takes the nearest; "clusters" has ``keys.clusters`` centres of
            k-means; "gaussians" has a Gaussian of q(x) / |q(x)| per class with a shared covariance and takes the
            likeliest.
        prefixes: see :class:`ostinato.methods.parts.prefixes.PrefixOptions`.
    """

    recipe = Recipe(epochs=5, batch_size=24, lr=0.03 * 24 / 256, optimizer="adam", clip=1.0)

    def __init__(
        self,
        backbone: Backbone,
        *,
        keys: Annotated[Part, LEARNED_KEYS] = "learned",
        **prefixes: Annotated[Any, DualPromptOptions()],
    ) -> None:
        super().__init__(backbone)
        self.prompts = Prefixes(backbone, built(DualPromptOptions(), "method", prefixes))
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
        """One stage, projected with ``pgp``; keys that are not learned are set before it."""
        prepare = None if self.keys.learned else lambda: self.keys.fit(*task.extract_features(self.query), task.classes)
        return [Stage(self.loss, prepare=prepare, step=self.prompts.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, and the pull of its key."""
        features = self.features(x, self.prompts.under(-1))
        return {"ce": self.head.loss(features, y)} | self.keys.pull(x, self.query)

    def end_task(self, task: LearnTask) -> None:
        """With ``pgp``, collect the directions of the task's queries under its trained prompts."""
        self.prompts.end_task(task)

    @property
    def refines(self) -> str | None:
        """The keys, if they are sums."""
        return "the Gaussians of its keys; prompts and head stay as they are" if self.keys.adds else None

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the keys."""
        if self.refines is None:
            super().refine(task)
        self.keys.refine(*task.extract_features(self.query))

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) of the keys for q(x)."""
        return self.keys.match(self.query(x), self.classes_per_task)

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the experts of ``tasks``."""
        return self.head(self.features(x, self.prompts.under_each(tasks)))
