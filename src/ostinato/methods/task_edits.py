"""What Soft-TransFormers and its rivals share: a change of the frozen weights per task, over a prompt method.

The prompt method is DualPrompt, L2P, CLIP-PGP or none. It brings prompts, a key per task and the head, which is made
of texts in CLIP-PGP; a subclass adds what the linear maps of chosen layers do differently under each task. At test the
task of every sample is inferred by

- ``prompt_id``: the key nearest to the frozen feature q(x);
- ``gradient_id``: with the weights of all tasks superposed in equal shares alpha, the share whose increase lowers
  the entropy of the prediction fastest (SupSup; Wortsman et al., NeurIPS 2020, https://arxiv.org/abs/2006.14769);
- ``min_entropy`` or ``max_score``: the sample is run under every task; the surest prediction wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, ClipBackbone, Edit, LayerPlan, LinearEdit, Tokens, prefix_from
from ostinato.backbones.edits import per_task
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Recipe, Stage, check_kind, check_layers
from ostinato.methods.class_texts import ClassTexts
from ostinato.methods.clip_pgp import ClipPGP
from ostinato.methods.dualprompt import DualPrompt, Keys
from ostinato.methods.l2p import L2P
from ostinato.nn import PerTask, TaskHeads, cosine, entropy

Base = Literal["dualprompt", "l2p", "clip_pgp", "none"]
TaskId = Literal["prompt_id", "gradient_id", "min_entropy", "max_score"]
LinearEdits = dict[int, dict[str, LinearEdit]]

ROWS = 256
"""Samples times tasks that run side by side when a sample is run under every task."""


class TaskEdits(DualPrompt):
    """Edits of linear maps per task.

    Args:
        backbone: the frozen encoder.
        base: the prompts below and beside the edits: "dualprompt", "l2p", "clip_pgp" (on CLIP models) or "none".
        layers: edited layers, from 0.
        e_layers: layers of DualPrompt's expert prefixes; None for the edited layers.
        task_id: how the task of a sample is inferred: "prompt_id", "gradient_id" (where the edits are masks),
            "min_entropy" or "max_score".
        entropy_over: logits in the entropy of a prediction: "seen" takes all classes seen, "top" as many of the
            largest as a task has classes on average, as the public code of Soft-TransFormers does.
        pool_size: M, prompts in the pool of base "l2p".
        top_k: prompts per sample of base "l2p".
        readout: of base "l2p": "prompt" or "cls".
        image_length: vectors of the image prompt of base "clip_pgp".
        context: learned vectors in the texts of a task of base "clip_pgp".
        keys: "mean" sets a task's key to the exact optimum of the matching loss, "learned" trains it with that loss,
            "classes" has a key per class and "gaussians" a Gaussian, see :class:`DualPrompt`.
        prompts: options of DualPrompt.

    Attributes:
        superposes: whether every edit is a mask, so that those of all tasks can be superposed.
    """

    superposes: ClassVar[bool] = False

    recipe = Recipe(epochs=20, batch_size=24, lr=0.03 * 24 / 256, optimizer="adam", clip=1.0)

    def __init__(
        self,
        backbone: Backbone,
        *,
        base: Base = "dualprompt",
        layers: tuple[int, ...] = (9, 10, 11),
        e_layers: tuple[int, ...] | None = None,
        task_id: TaskId = "prompt_id",
        entropy_over: Literal["seen", "top"] = "seen",
        pool_size: int = 10,
        top_k: int = 5,
        readout: Literal["prompt", "cls"] = "prompt",
        image_length: int = 10,
        context: int = 16,
        keys: Keys = "mean",
        **prompts: Any,
    ) -> None:
        if base not in get_args(Base):
            raise InputError(f"method.base must be one of {list(get_args(Base))}, got {base!r}.")
        if task_id not in get_args(TaskId):
            raise InputError(f"method.task_id must be one of {list(get_args(TaskId))}, got {task_id!r}.")
        if task_id == "gradient_id" and not self.superposes:
            raise InputError(
                f"method.task_id=gradient_id superposes masks, which {self.name} has none of; use prompt_id."
            )
        if not layers:
            raise InputError("method.layers must name at least one layer.")
        experts: tuple[int, ...] = e_layers if e_layers is not None else layers
        pgp = prompts.pop("pgp", 0.0)
        if base != "dualprompt":
            experts, prompts = (), prompts | {"g_layers": ()}
            if pgp and base == "none":
                raise InputError("method.pgp projects the updates of prompts: with method.base=none there are none.")
        super().__init__(backbone, e_layers=experts, pgp=pgp if base == "dualprompt" else 0.0, keys=keys, **prompts)
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        self.task_id, self.entropy_over = task_id, entropy_over
        self.below: L2P | ClipPGP | None = None  # prompts among the tokens
        if base == "l2p":
            self.below = L2P(backbone, pool_size=pool_size, top_k=top_k, readout=readout, pgp=pgp)
        if base == "clip_pgp":
            clip = check_kind("method.base=clip_pgp", backbone, ClipBackbone)
            self.below = ClipPGP(clip, length=image_length, context=context, pgp=pgp)
        if self.below is not None:
            self.below.cache = self.cache
        self.split = min((*self.layers, *self.e_layers))  # below it all tasks compute the same
        self.plain_below = self.below is None and not any(i < self.split for i in self.g_layers)

    def linear(self, task: int) -> LinearEdits:
        """What the linear maps of each edited layer do differently under a task; -1 is the newest."""
        raise NotImplementedError

    @property
    def classifier(self) -> TaskHeads | ClassTexts:
        """What turns features into logits."""
        return self.below.texts if isinstance(self.below, ClipPGP) else self.head

    # Training

    def add_classes(self, task: LearnTask) -> None:
        """Add the task's rows of the head, or its texts."""
        if isinstance(self.below, ClipPGP):
            self.below.begin_task(task)
        else:
            super().add_classes(task)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """The prompt method's stage with the edits in its loss."""
        stage = next(iter(super().stages(task)))
        if self.below is not None:
            stage = replace(stage, step=next(iter(self.below.stages(task))).step)
        return [replace(stage, loss=self.loss)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, and the pull of keys that are learned."""
        start = self.split if self.plain_below else 0
        tokens, losses = (self.states(x, start), {}) if self.plain_below else self.enter(x)
        features = self._read(tokens, self._edited(self.experts[-1][None], self.linear(-1)), start)
        losses = {"ce": self.classifier.loss(features, y)} | losses
        if self.learns_keys:
            losses["pull"] = -self.pull * cosine(self.query(x), self.keys[-1][None]).mean()
        return losses

    def end_task(self, task: LearnTask) -> None:
        """The statistics that the prompts need."""
        super().end_task(task)
        if self.below is not None:
            self.below.end_task(task)

    # One pass

    def enter(self, x: Tensor) -> tuple[Tokens, Losses]:
        """States (B, N, D) that enter layer 0, prompts of L2P or CLIP-PGP among them, and their loss terms."""
        return (self.backbone.embed(x), {}) if self.below is None else self.below.enter(x)

    def shared(self, x: Tensor) -> Tokens:
        """States that enter the first layer that differs between tasks."""
        if self.plain_below:
            return self.states(x, self.split)
        return self.backbone.run(self.enter(x)[0], self.plan(self.experts[-1][None]), stop=self.split)

    def _edited(self, experts: Tensor, linear: LinearEdits) -> LayerPlan:
        edits = dict(self.plan(experts).edits)
        return LayerPlan(edits | {i: replace(edits.get(i, Edit()), linear=linear[i]) for i in linear})

    def _read(self, tokens: Tokens, plan: LayerPlan, start: int) -> Tensor:
        reader = self.backbone.features if self.below is None else self.below.read
        return reader(tokens, plan, start=start)

    # Scoring

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Logits (B, n_seen) under the edits of ``tasks``; samples of one task run together."""
        states = self.shared(x)
        features = torch.empty(len(x), self.backbone.dim, device=x.device)
        for task in tasks.unique().tolist():
            rows = (tasks == task).nonzero().flatten()
            plan = self._edited(self.experts[task][None], self.linear(task))
            features[rows] = self._read(states.take(rows), plan, self.split)
        return self.classifier(features)

    def scores_all_tasks(self, x: Tensor) -> Tensor:
        """Logits (T, B, n_seen) under the edits of every task; the layers below the first edit run once."""
        states = self.shared(x)
        size = max(1, ROWS // self.n_tasks)
        parts = [self._all_tasks(states.take(slice(i, i + size))) for i in range(0, len(x), size)]
        return self.classifier(torch.cat(parts, dim=1))

    def _all_tasks(self, states: Tokens) -> Tensor:
        each = [self.linear(task) for task in range(self.n_tasks)]
        linear = {i: {name: per_task([e[i][name] for e in each]) for name in each[0][i]} for i in each[0]}
        plan = self._edited(self.experts[-1][None], linear)
        experts = self.experts.stacked()  # (T, E layers, 2, P, D)
        edits = dict(plan.edits)
        for i, layer in enumerate(self.e_layers):
            keys, values = prefix_from(experts[:, i], self.backbone.arch.heads)
            edits[layer] = replace(edits[layer], prefix=(keys[:, None], values[:, None]))
        return self._read(states.under(self.n_tasks), LayerPlan(edits), self.split)

    # Which task

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """The ways to weigh tasks that the module's docstring lists, gradients for masks alone."""
        gradient = {"gradient_id": self.gradient_evidence} if self.superposes else {}
        return {
            "prompt_id": lambda x: self.match(self.query(x)),
            **gradient,
            "min_entropy": lambda x: -self._entropy(self.scores_all_tasks(x)).T,
            "max_score": lambda x: self.scores_all_tasks(x).max(-1).values.T,
        }

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) for every task by the rule that ``task_id`` names."""
        return self.rules()[self.task_id](x)

    def _entropy(self, scores: Tensor) -> Tensor:
        top = max(2, self.n_seen // self.n_tasks) if self.entropy_over == "top" else None
        return entropy(scores, top)

    def gradient_evidence(self, x: Tensor) -> Tensor:
        """-dH/d alpha (B, T) at equal shares, less its mean over tasks, for every sample alone.

        One pass forward and one backward, whatever the number of tasks. Prompts are those of the nearest key, as
        in the public code.
        """
        prompts = self.match(self.query(x)).argmax(1)
        # Evaluation runs in inference mode, where nothing can be differentiated.
        with torch.inference_mode(False), torch.enable_grad():
            with torch.no_grad():
                states = self.shared(x.clone())
                states = states._replace(h=states.h.clone())
            probe = torch.zeros(len(x), self.n_tasks, device=x.device, requires_grad=True)
            experts = self.experts.stacked()[prompts.clone()].detach()
            plan = self._edited(experts, self.superposed(probe))
            surprise = self._entropy(self.classifier(self._read(states, plan, self.split))).sum()
            return -torch.autograd.grad(surprise, probe)[0]

    def superposed(self, probe: Tensor) -> LinearEdits:
        """The mean of all tasks' masks, with ``probe`` (B, T) on each one's deviation from it."""
        each = [self.linear(task) for task in range(self.n_tasks)]
        edits: LinearEdits = {i: {} for i in each[0]}
        for i, maps in each[0].items():
            for name in maps:
                stacked = torch.stack([cast(Tensor, e[i][name].mask).detach() for e in each])
                mean = stacked.mean(0)
                edits[i][name] = LinearEdit(mask=mean, probe=probe, directions=stacked - mean)
        return edits

    # What subclasses keep

    def banks(self, maps: Sequence[str]) -> nn.ModuleDict:
        """Room for a parameter per task, for every edited layer and each of ``maps``: layer, then map."""
        return nn.ModuleDict({str(i): nn.ModuleDict({name: PerTask() for name in maps}) for i in self.layers})

    def add_factors(self, down: nn.ModuleDict, up: nn.ModuleDict, rank: int, *, on_output: bool) -> None:
        """Add the new task's low-rank factors to every bank.

        Args:
            down: gets (rank, width) from U(-1, 1) / sqrt(rank width).
            up: gets zeros (out, rank), so that a new task begins at the prompt method.
            rank: r.
            on_output: whether they act on a map's output instead of its input, which decides the width.
        """
        for i, name, bank in banked(down):
            out, into = self.backbone.arch.shape_of(name)
            width = out if on_output else into
            bound = (rank * width) ** -0.5
            bank.add(torch.empty(rank, width, device=self.device).uniform_(-bound, bound))
            bank_of(up, i, name).add(torch.zeros(out, rank, device=self.device))


def banked(banks: nn.ModuleDict) -> Iterator[tuple[int, str, PerTask]]:
    """The banks of :meth:`TaskEdits.banks` with their layer and map."""
    for i, maps in banks.items():
        for name, bank in cast(nn.ModuleDict, maps).items():
            yield int(i), name, cast(PerTask, bank)


def bank_of(banks: nn.ModuleDict, layer: int, name: str) -> PerTask:
    """The bank of a layer and map."""
    return cast(PerTask, cast(nn.ModuleDict, banks[str(layer)])[name])
