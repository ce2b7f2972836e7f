"""Base class of Soft-TransFormers and its rivals: edits of linear maps per task over prompts.

A subclass chooses the bank of edits. The task of a test sample is inferred by one of four rules:

- ``prompt_id``: the key nearest to the frozen feature q(x);
- ``gradient_id``: the task whose share alpha, increased in a superposition of all masks at equal shares, lowers the
  entropy of the prediction fastest (SupSup; Wortsman et al., NeurIPS 2020, https://arxiv.org/abs/2006.14769);
- ``min_entropy``, ``max_score``: the task whose forward pass has the lowest entropy or the largest logit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Annotated, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from ostinato.backbones import Backbone, Edit, LayerPlan, LinearEdit, Tokens
from ostinato.backbones.edits import per_task
from ostinato.choices import Choice, Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, TaskInferring, check_layers
from ostinato.methods.parts.banks import Bank, LinearEdits
from ostinato.methods.parts.frozen_term import term_choice
from ostinato.methods.parts.pool import PoolOptions
from ostinato.methods.parts.prefixes import PrefixOptions
from ostinato.methods.parts.prompts import Edits, Head, NoPromptOptions, Prompts
from ostinato.methods.parts.words import WordOptions
from ostinato.nn import entropy
from ostinato.nn.keys import MEAN_KEYS, TaskKeys
from ostinato.nn.routing import by_task, traced

PROMPTS = Choice(PrefixOptions(), PoolOptions(), WordOptions(), NoPromptOptions())
"""Prompts below the edits."""

TERM = term_choice(1.0)
"""Terms of the plain encoder."""

TaskId = Literal["prompt_id", "gradient_id", "min_entropy", "max_score"]

ROWS = 256
"""Samples times tasks of one forward pass under all tasks."""


class TaskEdits(TaskInferring):
    """Edits of linear maps per task over prompts.

    Args:
        backbone: the frozen encoder.
        bank: from the edited layers to the bank of edits.
        base: prompts: "dualprompt", "l2p", "clip_pgp" (on CLIP models) or "none".
        layers: edited layers, from 0.
        task_id: rule of task inference: "prompt_id", "gradient_id" (masks only), "min_entropy" or "max_score";
            ``ostinato protocols`` compares all rules.
        entropy_over: logits in the entropy of a prediction: "seen" takes all classes seen; "top" takes the largest, as
            many as a task has classes on average; "benchmark" takes the C / T largest after T tasks, as in the public
            code of Soft-TransFormers.
        benchmark_classes: C, the classes of all tasks of the benchmark, for "benchmark".
        keys: task keys: "mean" sets the optimum of the matching loss, "learned" trains with that loss, "classes" has a
            mean per class, "clusters" centres of k-means, "gaussians" a Gaussian per class.
        frozen_term: scores of the plain encoder to add: "none", or "discriminant", see
            :class:`DiscriminantTermOptions`.

    Attributes:
        split: the lowest layer that differs between tasks.
    """

    no_effect: ClassVar = {"benchmark_classes": ("entropy_over", ("seen", "top"))}
    recipe = Recipe(epochs=20, batch_size=24, lr=0.03 * 24 / 256, optimizer="adam", clip=1.0)

    prompts: Prompts
    keys: TaskKeys
    head: Head

    def __init__(
        self,
        backbone: Backbone,
        bank: Callable[[tuple[int, ...]], Bank],
        *,
        base: Annotated[Part, PROMPTS] = "dualprompt",
        layers: tuple[int, ...] = (9, 10, 11),
        task_id: TaskId = "prompt_id",
        entropy_over: Literal["seen", "top", "benchmark"] = "seen",
        benchmark_classes: int = 0,
        keys: Annotated[Part, MEAN_KEYS] = "mean",
        frozen_term: Annotated[Part, TERM] = "none",
    ) -> None:
        if task_id not in get_args(TaskId):
            raise InputError(f"method.task_id must be one of {list(get_args(TaskId))}, got {task_id!r}.")
        if entropy_over == "benchmark" and benchmark_classes < 2:
            raise InputError(
                "method.entropy_over=benchmark needs method.benchmark_classes, the classes of all tasks, at least 2, "
                f"got {benchmark_classes}."
            )
        if not layers:
            raise InputError("method.layers must name at least one layer.")
        super().__init__(backbone)
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        self.task_id, self.entropy_over, self.benchmark_classes = task_id, entropy_over, benchmark_classes
        prompts: Prompts = PROMPTS.read(base, "method.base").build(backbone, self.layers, "method.base")
        parts = {
            "prompts": prompts,
            "keys": MEAN_KEYS.read(keys, "method.keys").build(backbone.dim),
            "head": prompts.make_head(),
        }
        for name in dict.fromkeys((*prompts.registered_after, "prompts", *parts)):
            self.add_module(name, parts[name])  # in an order that :class:`Prompts` explains
        self.bank = bank(self.layers)
        self.frozen_term = TERM.read(frozen_term, "method.frozen_term").build(backbone.dim)
        if task_id == "gradient_id" and not self.bank.superposes:
            raise InputError(f"method.task_id=gradient_id needs masks, but {self.name} has none; use prompt_id.")
        self.split = min((*self.layers, *prompts.task_layers))

    def linear(self, task: int) -> LinearEdits:
        """Edits of the linear maps of each edited layer under a task; -1 is the newest."""
        return self.bank.edits(task % self.n_tasks)

    # Training

    def begin_task(self, task: LearnTask) -> None:
        """Add prompts, keys, rows of the head and edits."""
        super().begin_task(task)
        self.prompts.begin_task()
        self.keys.begin(len(task.classes), device=self.device)
        self.head.open(task, device=self.device)
        self.bank.begin_task(self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; keys that are not learned are set before it."""
        prepare = None if self.keys.learned else lambda: self.keys.fit(*task.extract_features(self.query), task.classes)
        return [Stage(self.loss, prepare=prepare, step=self.prompts.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, the loss terms of the prompts, and the pull of learned keys."""
        start = self.split if self.plain_below else 0
        tokens, losses = (self.states(x, start), {}) if self.plain_below else self.prompts.enter(x, self.query)
        features = self.prompts.read(tokens, edited(self.prompts.under(-1), self.linear(-1)), start=start)
        return {"ce": self.head.loss(features, y)} | losses | self.keys.pull(x, self.query)

    def end_task(self, task: LearnTask) -> None:
        """Close the task's head, prompts and edits; keep its statistics."""
        self.head.close()
        self.prompts.end_task(task)
        self.bank.end_task()
        self.frozen_term.end_task(task, self.query)

    @property
    def refines(self) -> str | None:
        """The keys, if they are sums and infer the task."""
        return (
            "the Gaussians of its keys; edits and head stay as they are"
            if self.keys.adds and self.task_id == "prompt_id"
            else None
        )

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the keys."""
        if self.refines is None:
            super().refine(task)
        self.keys.refine(*task.extract_features(self.query))
        self.frozen_term.refine(task, self.query)

    # Scoring

    @property
    def plain_below(self) -> bool:
        """Whether layers below ``split`` are those of the plain backbone."""
        return self.prompts.first >= self.split

    def shared(self, x: Tensor) -> Tokens:
        """States before layer ``split``, the same for all tasks."""
        if self.plain_below:
            return self.states(x, self.split)
        tokens, _ = self.prompts.enter(x, self.query)
        return self.backbone.run(tokens, LayerPlan(self.prompts.under(-1)), stop=self.split)

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the edits of ``tasks``, in one pass per task, with the frozen term."""
        states = self.shared(x)

        def features_of(task: int, rows: Tensor | slice) -> Tensor:
            plan = edited(self.prompts.under(task), self.linear(task))
            return self.prompts.read(states.take(rows), plan, start=self.split)

        features = by_task(tasks, self.n_tasks, features_of)
        return self.frozen_term.add(self.head(features), x, self.query)

    def scores_all_tasks(self, x: Tensor) -> Tensor:
        """Logits (T, B, n_seen) under the edits of every task; layers below ``split`` run once."""
        states = self.shared(x)
        each = [self.linear(task) for task in range(self.n_tasks)]
        linear = {i: {name: per_task([e[i][name] for e in each]) for name in each[0][i]} for i in each[0]}
        plan = edited(self.prompts.under_all(), linear)
        size = max(1, ROWS // self.n_tasks)
        rows = [slice(None)] if traced() else [slice(i, i + size) for i in range(0, len(x), size)]
        parts = (states.take(part).under(self.n_tasks) for part in rows)
        return self.head(torch.cat([self.prompts.read(part, plan, start=self.split) for part in parts], dim=1))

    # Task inference

    def match(self, query: Tensor) -> Tensor:
        """Evidence (B, T) of the keys for q(x), (B, D)."""
        return self.keys.match(query, self.classes_per_task)

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The rules of this module's docstring; ``gradient_id`` for masks only."""
        gradient = {"gradient_id": self.gradient_evidence} if self.bank.superposes else {}
        return {
            "prompt_id": lambda x: self.match(self.query(x)),
            **gradient,
            "min_entropy": lambda x: -self._entropy(self.scores_all_tasks(x)).T,
            "max_score": lambda x: self.scores_all_tasks(x).max(-1).values.T,
        }

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) by the rule ``task_id``."""
        return self.rules()[self.task_id](x)

    def _entropy(self, scores: Tensor) -> Tensor:
        if self.entropy_over == "seen":
            return entropy(scores)
        classes = self.n_seen if self.entropy_over == "top" else self.benchmark_classes
        return entropy(scores, max(2, classes // self.n_tasks))

    def gradient_evidence(self, x: Tensor) -> Tensor:
        """-dH/d alpha (B, T) at equal shares, less its mean over tasks, for every sample alone.

        It takes one forward and one backward pass for any number of tasks. Prompts are those of the nearest key, as in
        the public code.
        """
        nearest = self.match(self.query(x)).argmax(1)
        # Leave the inference mode of evaluation, which has no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                states = self.shared(x.clone())
                states = states._replace(h=states.h.clone())
                prefixes = self.prompts.under_each(nearest.clone())
            mask_coefficients = torch.zeros(len(x), self.n_tasks, device=x.device, requires_grad=True)
            plan = edited(prefixes, self.superposed(mask_coefficients))
            surprise = self._entropy(self.head(self.prompts.read(states, plan, start=self.split))).sum()
            return -torch.autograd.grad(surprise, mask_coefficients)[0]

    def superposed(self, mask_coefficients: Tensor) -> LinearEdits:
        """Mean mask of all tasks, plus ``mask_coefficients`` (B, T) times each mask's deviation from it."""
        each = [self.linear(task) for task in range(self.n_tasks)]
        edits: LinearEdits = {i: {} for i in each[0]}
        for i, maps in each[0].items():
            for name in maps:
                stacked = torch.stack([cast(Tensor, e[i][name].mask).detach() for e in each])
                mean = stacked.mean(0)
                edits[i][name] = LinearEdit(mask=mean, mask_coefficients=mask_coefficients, mask_basis=stacked - mean)
        return edits


def edited(prefixes: Edits, linear: LinearEdits) -> LayerPlan:
    """A plan of prefixes and edits of linear maps."""
    return LayerPlan(prefixes | {i: replace(prefixes.get(i, Edit()), linear=linear[i]) for i in linear})
