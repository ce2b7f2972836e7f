"""LiEPrompt: a prompt pool per layer, weighted by a router over layers and grown in the most important layers.

Li: "LiEPrompt: Layer-wise Importance Expandable Prompt for Pre-trained Model-based Class-Incremental Learning",
public code, https://github.com/Frank-lilinjie/LiEPrompt. No text of the paper was available; this file was written from
a description of the code.

Every layer has a pool of key and value prefixes. The state before the layer is the query, which mixes the prompts by a
softmax over cosines with their keys, or selects the nearest. A linear router computes shares g of the layers, the
softmax of W q(x) + b over layers, from the frozen feature q(x). In training g scales the layer's prefix; at test a
layer is on if its g exceeds 1 / layers. Each task has its own router; at test the class mean nearest to q(x) gives the
task. Between tasks the layers with the largest running share freeze their prompts and get new ones. After each task
from the second on, the head is trained again on draws from class Gaussians (classifier alignment).

Differences from the public code: pools grow when the next task begins, not before the evaluation, so that no untrained
prompt takes part in a prediction. Predictions are the head's logits; the code chooses the best of three read-outs by
test accuracy. Prototypes are means of un-augmented images; the task of a class is looked up. The running share is reset
for each task. Weight decay does not reach the head's rows of other classes, and alignment trains the head alone. The
router's mean noise, which has no gradient, is left out. The alignment has its own weight decay
(``align.weight_decay``), where the code passes that of the main stage. Pixels are normalised as the weights expect. A
task of one class competes with the rows of earlier classes, which the main stage does not change.
Kept from the code: at test a layer that is on has its whole prefix, about as many times the trained one as there are
layers (``test_gate``); a layer that is off keeps positions of zeros, which take part in its attention (``off``);
prompts of layers that never grow are trained by all tasks and drift; a grown pool gives its frozen prompts less weight
(``restrict``); statistics of old classes are not updated. Defaults are those for CIFAR-100 with ImageNet-21k weights.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Edit, Tokens, prefix_from
from ostinato.choices import Choice, Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring, check_positive
from ostinato.methods.parts.alignment import DiscriminantOptions, GaussianOptions
from ostinato.methods.parts.frozen_term import term_choice
from ostinato.nn import ClassMeans, PerTask, TaskHeads, cosine
from ostinato.nn.matching import nearest_per_task
from ostinato.nn.pools import PromptPool
from ostinato.registry import register

RIDGE = 2e-4
"""Added to the diagonal of class covariances; the code adds 1e-4 in the estimate and 1e-4 in the draw."""

ALIGNMENT = Choice(GaussianOptions(schedule="cosine_per_epoch", weight_decay=0.0), DiscriminantOptions())
"""Alignment of the head; on Gaussians as in the public code, whose weight decay is that of the main stage, here 0."""

TERM = term_choice(1.0)
"""Terms of the plain encoder."""


class PoolPlan:
    """Plan whose layers select or mix prefixes by the state before them.

    Args:
        method: with the pools.
        frozen: q(x), (B, D).
        gate: (B, layers), scales the prefixes.
        sizes: (B, layers), number of usable prompts; None for all.
        absent: whether a gate of 0 removes the prefix instead of setting it to zero.
    """

    first = 0

    def __init__(
        self, method: LiEPrompt, frozen: Tensor, gate: Tensor, sizes: Tensor | None = None, absent: bool = False
    ) -> None:
        self.method, self.frozen, self.gate, self.sizes, self.absent = method, frozen, gate, sizes, absent
        self.similarity: list[Tensor] = []  # (B, top_k) of each layer, if prompts are selected

    def __call__(self, layer: int, tokens: Tokens) -> Edit:
        """The gated prefix of ``layer`` for states (B, N, D)."""
        method = self.method
        pool: PromptPool = method.pools[layer]  # pyright: ignore[reportAssignmentType]
        sizes = None if self.sizes is None else self.sizes[:, layer]
        query = self._query(tokens)
        if method.top_k:
            # Detached, so that the pull moves keys, not queries.
            prompts, similarity = pool.select(query.detach(), method.top_k, sizes)
            self.similarity.append(similarity)
        else:
            prompts = pool.mix(query, sizes)
        gate = self.gate[:, layer]
        on = (gate > 0)[:, None].expand(-1, prompts.shape[2]) if self.absent else None
        return Edit(prefix=prefix_from(prompts * gate[:, None, None, None], method.heads), prefix_mask=on)

    def _query(self, tokens: Tokens) -> Tensor:
        """The query (B, D) of the keys."""
        if self.method.match == "max":
            h, mask = tokens
            return (h if mask is None else h.masked_fill(~mask[..., None], -torch.inf)).amax(1)
        return tokens.h[:, 0] if self.method.match == "cls" else self.frozen


@register("lieprompt")
class LiEPrompt(TaskInferring):
    """Expandable prompt pools under a router over layers.

    Args:
        backbone: the frozen encoder; every layer is prompted.
        pool_size: initial prompts per layer.
        length: positions of a prompt.
        top_k: prompts selected per sample and joined; 0 mixes all prompts of a pool.
        layer_topk: layers that freeze and grow when a further task begins.
        add_num: new prompts of a growing layer.
        balance: weight of the squared distance of the mean gate from the uniform one.
        ortho: weight of the overlap of new keys with frozen ones and each other.
        test_gate: gate at test: "hard" is 1 for shares above average and 0 for others, "soft" the shares as in
            training, "soft_masked" the shares above average and 0 for others.
        off: prefix under a gate of 0: "zero" keys and values, or none ("absent").
        query: query of the keys: the "max" over the layer's input tokens without padding, its "cls" token, or the
            "frozen" feature q(x).
        key_pull: weight of a pull of selected keys towards their queries, mean(1 - cosine); needs ``top_k``.
        restrict: at test, use only the prompts that existed when the inferred task was learned.
        align: alignment of the head: "gaussians", see :class:`GaussianOptions`, or "discriminant", which sets it to the
            linear discriminant of the same features after each task.
        readout: scores: the "linear" head's logits, or cosines with class means of q(x) ("proto").
        frozen_term: scores of the plain encoder to add: "none", or "discriminant", see
            :class:`DiscriminantTermOptions`.
    """

    no_effect: ClassVar = {"add_num": ("layer_topk", (0,)), "off": ("test_gate", ("soft",))}
    recipe = Recipe(epochs=20, batch_size=24, lr=1e-3, optimizer="adam")

    running: Tensor
    importance: Tensor
    sizes: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        pool_size: int = 10,
        length: int = 5,
        top_k: int = 0,
        layer_topk: int = 5,
        add_num: int = 10,
        balance: float = 0.1,
        ortho: float = 0.1,
        test_gate: Literal["hard", "soft", "soft_masked"] = "hard",
        off: Literal["zero", "absent"] = "zero",
        query: Literal["max", "cls", "frozen"] = "max",
        key_pull: float = 0.0,
        restrict: bool = False,
        align: Annotated[Part, ALIGNMENT] = "gaussians",
        readout: Literal["linear", "proto"] = "linear",
        frozen_term: Annotated[Part, TERM] = "none",
    ) -> None:
        super().__init__(backbone)
        depth, d, width = backbone.arch.depth, backbone.dim, backbone.arch.dim
        check_positive(pool_size=pool_size, length=length, add_num=add_num)
        if not 0 <= top_k <= pool_size:
            raise InputError(f"method.top_k must lie in [0, pool_size = {pool_size}], got {top_k}.")
        if not 0 <= layer_topk <= depth:
            raise InputError(f"method.layer_topk must lie in [0, {depth}], the number of layers, got {layer_topk}.")
        if key_pull and not top_k:
            raise InputError(
                f"method.key_pull={key_pull} pulls selected keys: set method.top_k to at least 1, or leave it out."
            )
        self.heads, self.top_k, self.layer_topk, self.add_num = backbone.arch.heads, top_k, layer_topk, add_num
        self.balance, self.ortho, self.key_pull = balance, ortho, key_pull
        self.test_gate, self.off, self.match, self.restrict = test_gate, off, query, restrict
        self.readout = readout
        self.scores_are_logits = readout == "linear"  # pyright: ignore[reportAttributeAccessIssue] - of this object
        self.pools = nn.ModuleList(
            PromptPool(pool_size, length, width, keys=d if query == "frozen" else width) for _ in range(depth)
        )
        # T routers (layers, D) and (layers,), of which the newest trains.
        self.router_weight, self.router_bias = PerTask(), PerTask()
        self.noise_std = nn.Parameter(torch.tensor(0.1))
        self.register_buffer("running", torch.zeros(depth))
        self.register_buffer("importance", torch.zeros(0, depth))
        self.register_buffer("sizes", torch.zeros(0, depth, dtype=torch.int64))
        self.class_means = ClassMeans(d)
        self.alignment = ALIGNMENT.read(align, "method.align").build(d, ridge=RIDGE)
        self.head = TaskHeads(d, freeze_old=False)
        self.frozen_term = TERM.read(frozen_term, "method.frozen_term").build(d)

    def begin_task(self, task: LearnTask) -> None:
        """Grow the most important layers' pools; add a router, rows of the head and class means."""
        super().begin_task(task)
        depth, d = self.backbone.arch.depth, self.backbone.dim
        weight, bias = torch.zeros(depth, d, device=self.device), torch.zeros(depth, device=self.device)
        if task.index == 0:
            nn.init.trunc_normal_(weight, std=0.02)
        else:
            weight.uniform_(-(d**-0.5), d**-0.5)
            bias.uniform_(-(d**-0.5), d**-0.5)
            for layer in self.importance[-1].argsort(descending=True, stable=True)[: self.layer_topk].tolist():
                self.pools[layer].expand(self.add_num)  # pyright: ignore[reportCallIssue]
        self.router_weight.add(weight)
        self.router_bias.add(bias)
        self.running.zero_()
        self.sizes = torch.cat([self.sizes, self.sizes.new_tensor([self.pool_sizes()])])
        self.class_means.grow(len(task.classes))
        self.head.grow(len(task.classes), device=self.device)

    def pool_sizes(self) -> list[int]:
        """Prompts of each layer, frozen and trainable."""
        return [len(pool) for pool in self.pools]  # pyright: ignore[reportArgumentType]

    def layer_importance(self) -> Tensor:
        """Running mean share (T, layers) of each layer at the end of each task's training."""
        return self.importance.clone()

    # Training

    def stages(self, task: LearnTask) -> list[Stage]:
        """Train prompts, router and the task's rows of the head; from the second task on, align all rows."""
        old = {id(rows) for part in (self.head.weight, self.head.bias) for rows in list(part)[:-1]}
        params = [p for p in self.parameters() if p.requires_grad and id(p) not in old]
        fit = Stage(
            self.loss, params=params, prepare=lambda: self._collect_means(task), averages=lambda: [self.running]
        )
        return [fit, *self.alignment.stages(task, self.head, self._inferred_features)]

    def _collect_means(self, task: LearnTask) -> None:
        """Add the class means of q(x), by which the task is inferred."""
        self.class_means.update(*task.extract_features(self.query))

    def _inferred_features(self, x: Tensor) -> Tensor:
        """Features (B, D) for the alignment, under the inferred task and the gate of the test."""
        return self.features(x, self.infer_task(x))

    def training_gate(self, frozen: Tensor) -> Tensor:
        """Shares (B, layers) of the newest router for q(x), (B, D), with noise of a learned size on its logits."""
        logits = frozen @ self.router_weight[-1].T + self.router_bias[-1]
        return (logits + self.noise_std * torch.randn_like(logits)).float().softmax(-1)

    def track(self, gate: Tensor) -> None:
        """Update the running mean share by a batch of gates (B, layers), with momentum 0.9 after the first batch."""
        mean = gate.detach().mean(0)
        self.running = torch.where(self.running.sum() == 0, mean, 0.9 * self.running + 0.1 * mean)

    def overlap(self) -> Tensor:
        """Mean overlap of keys over the grown layers; 0 without any."""
        grown = [pool.overlap() for pool in self.pools if len(pool.frozen_keys)]  # pyright: ignore
        return torch.stack(grown).mean() if grown else self.running.new_zeros(())

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, balance of the gate, overlap of keys, and optional pull of keys."""
        frozen = self.query(x)
        gate = self.training_gate(frozen)
        self.track(gate)
        plan = PoolPlan(self, frozen, gate)
        losses = {
            "ce": self.head.loss(self.backbone(x, plan), y),
            "balance": self.balance * (gate.mean(0) - 1 / gate.shape[1]).square().mean(),
            "ortho": self.ortho * self.overlap(),
        }
        if self.key_pull:
            losses["pull"] = self.key_pull * (1 - torch.stack(plan.similarity)).mean()
        return losses

    def end_task(self, task: LearnTask) -> None:
        """Keep the running shares and statistics; align the head where no stage does."""
        self.importance = torch.cat([self.importance, self.running[None]])
        self.alignment.end_task(task, self.head, self._inferred_features)
        self.frozen_term.end_task(task, self.query)

    @property
    def refines(self) -> str:
        """The class means of q(x)."""
        return "the class means by which it infers the task; prompts, routers and head stay as they are"

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the class means."""
        self._collect_means(task)
        self.frozen_term.refine(task, self.query)

    # Test

    def task_scores(self, x: Tensor) -> Tensor:
        """Cosine (B, T) of q(x) with the nearest class mean of each task."""
        return nearest_per_task(self.prototype_scores(x), self.classes_per_task)

    def prototype_scores(self, x: Tensor) -> Tensor:
        """Cosine (B, n_seen) of q(x) with every class mean."""
        return cosine(self.query(x), self.class_means.means())

    def gate(self, frozen: Tensor, tasks: Tensor) -> Tensor:
        """Gate (B, layers) at test of q(x), (B, D), under the routers of ``tasks``, (B,)."""
        logits = (
            torch.einsum("bd,bld->bl", frozen, self.router_weight.stacked()[tasks]) + self.router_bias.stacked()[tasks]
        )
        soft = logits.float().softmax(-1)
        if self.test_gate == "soft":
            return soft
        mask = (soft > 1 / soft.shape[1]).float()
        return mask if self.test_gate == "hard" else soft * mask

    def features(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Features (B, D) at test under the routers of ``tasks``, (B,)."""
        frozen = self.query(x)
        sizes = self.sizes[tasks] if self.restrict else None
        absent = self.off == "absent" and self.test_gate != "soft"
        return self.backbone(x, PoolPlan(self, frozen, self.gate(frozen, tasks), sizes, absent))

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Scores (B, n_seen) with the frozen term.

        They are logits under the routers of ``tasks``; for "proto" cosines with class means, which need no task.
        """
        scores = self.prototype_scores(x) if self.readout == "proto" else self.head(self.features(x, tasks))
        return self.frozen_term.add(scores, x, self.query)
