"""DualPrompt: general prompts for all tasks, expert prompts for each.

Wang, Zhang, Ebrahimi, Sun, Zhang, Lee, Ren, Su, Perot, Dy, Pfister: "DualPrompt: Complementary Prompting for
Rehearsal-free Continual Learning", ECCV 2022, https://arxiv.org/abs/2204.04799.

Prefixes are joined to keys and values after the projections (prefix tuning). Lower layers hold a general
prefix that all tasks train; further layers hold an expert prefix per task, found at test by the key with the
largest cosine to the frozen feature q(x). Training uses the expert of the current task; the loss is
cross-entropy over its classes plus a pull of its key towards q(x).

Differences from the paper: layers count from 0, so the paper's 1-2 and 3-5 are (0, 1) and (2, 3, 4). The pool grows
by one expert per task. Lengths and recipe are those of the common PyTorch code for CIFAR-100: 5 positions per prefix
(the paper uses longer experts), learning rate 0.03 at batch size 256 scaled to batch size 24, gradients clipped at
norm 1, U(-1, 1) initialisation, a new expert as a copy of the one before. Unlike there, the expert is chosen per
sample instead of by a vote of the batch, key and value prefixes keep their roles for every sample, and pixels are
normalised as the weights expect. A task of one class competes with the frozen rows of earlier classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Edit, LayerPlan, prefix_from
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, TaskInferring, check_layers, check_positive
from ostinato.nn import PerTask, TaskHeads, cosine
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
        pull: weight of the key term (lambda).
        warm_start: begin a task's expert as a copy of the one before.
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
    ) -> None:
        super().__init__(backbone)
        check_positive(g_length=g_length, e_length=e_length)
        self.g_layers = check_layers("g_layers", g_layers, backbone.arch.depth)
        self.e_layers = check_layers("e_layers", e_layers, backbone.arch.depth)
        if shared := set(g_layers) & set(e_layers):
            raise InputError(f"method.g_layers and method.e_layers must not share layers, both have {sorted(shared)}.")
        if not e_layers:
            raise InputError("method.e_layers must name at least one layer.")
        self.pull, self.warm_start = pull, warm_start
        self.e_shape = (len(e_layers), 2, e_length, backbone.dim)
        self.general = nn.Parameter(torch.empty(len(g_layers), 2, g_length, backbone.dim).uniform_(-1, 1))
        self.experts = PerTask()  # T of (E layers, 2, P, D)
        self.keys = PerTask()  # T of (D,)
        self.head = TaskHeads(backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's expert, key and rows of the head."""
        super().begin_task(task)
        fresh = torch.empty(self.e_shape, device=self.device).uniform_(-1, 1)
        copy = self.warm_start and len(self.experts) > 0
        self.experts.add(self.experts[-1].detach().clone() if copy else fresh)
        self.keys.add(torch.empty(self.backbone.dim, device=self.device).uniform_(-1, 1))
        self.head.grow(len(task.classes), device=self.device)

    def plan(self, experts: Tensor) -> LayerPlan:
        """Prefixes per layer for experts (B | 1, E layers, 2, P, D)."""
        heads = self.backbone.arch.heads
        edits = {
            layer: Edit(prefix=prefix_from(g[None], heads))
            for layer, g in zip(self.g_layers, self.general, strict=True)
        }
        edits |= {layer: Edit(prefix=prefix_from(experts[:, i], heads)) for i, layer in enumerate(self.e_layers)}
        return LayerPlan(edits)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes and the pull of its key."""
        similarity = cosine(self.query(x), self.keys[-1][None])
        features = self.backbone(x, self.plan(self.experts[-1][None]))
        return {"ce": self.head.loss(features, y), "pull": -self.pull * similarity.mean()}

    def infer_task(self, x: Tensor) -> Tensor:
        """The task whose key is nearest to q(x)."""
        return cosine(self.query(x), self.keys.stacked()).argmax(1)

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the experts of ``tasks``."""
        return self.head(self.backbone(x, self.plan(self.experts.stacked()[tasks])))
