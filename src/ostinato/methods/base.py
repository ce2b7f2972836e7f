"""What a method is: a paper's training and scoring, without transformer, optimiser loop or test data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Tokens
from ostinato.backbones.frozen import FrozenBackbone
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.nn.exemplars import Exemplars
from ostinato.nn.growing import Growing
from ostinato.streams.base import Samples

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a stage is optimised; every field can be overridden as ``train.<field>``.

    Attributes:
        epochs: passes over the stage's data.
        batch_size: samples per step.
        lr: learning rate at the start (no scaling by batch size is applied anywhere).
        optimizer: "adam", "adamw" or "sgd".
        momentum: of SGD.
        weight_decay: L2 for adam and sgd, decoupled for adamw.
        schedule: "constant"; "cosine", half a period to 0; "quarter_cosine", a quarter period to 0;
            "multistep", times 0.1 at each milestone. All per step.
        milestones: fractions of the stage's steps, for "multistep".
        clip: largest global gradient norm, or None.
    """

    epochs: int = 5
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "quarter_cosine", "multistep"] = "constant"
    milestones: tuple[float, ...] = ()
    clip: float | None = None

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            InputError: naming the field.
        """
        rules = {
            "epochs": (self.epochs >= 1, "be at least 1"),
            "batch_size": (self.batch_size >= 1, "be at least 1"),
            "lr": (0 < self.lr < math.inf, "be positive"),
            "momentum": (0 <= self.momentum < 1, "lie in [0, 1)"),
            "weight_decay": (self.weight_decay >= 0, "not be negative"),
            "milestones": (
                all(0 < m < 1 for m in self.milestones) and (self.schedule != "multistep" or bool(self.milestones)),
                "be fractions in (0, 1), at least one for the schedule multistep",
            ),
            "clip": (self.clip is None or self.clip > 0, "be positive or left out"),
        }
        for field, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"train.{field} must {rule}, got {getattr(self, field)}.")


@dataclass(frozen=True)
class LearnTask:
    """What a method sees of a task: its classes and its own training data, nothing else.

    Attributes:
        index: number of the task, from 0.
        classes: its labels; they continue where the task before ended.
        train: training samples, augmented anew in every epoch.
        eval_batches: iterates once over the training samples as they are at test time, in a fixed order, as
            (x, y) on the method's device; over those at the given positions where any are given.
        processes: those that learn the task together.
        class_names: of its labels, for methods that read them.
    """

    index: int
    classes: range
    train: Samples
    eval_batches: Callable[..., Iterator[tuple[Tensor, Tensor]]]
    processes: ProcessGroup = SINGLE_PROCESS
    class_names: tuple[str, ...] = ()

    def extract_features(self, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) of all training images as they are at test time, without gradients.

        Every process computes its share of the images, and all get the whole.

        Args:
            features: images (B, 3, S, S) to (B, D).
        """
        alone = self.processes.size == 1
        mine = [] if alone else self.processes.shard(range(len(self.train)))
        batches = self.eval_batches() if alone else self.eval_batches(mine or [0])
        with torch.no_grad():
            rows, labels = zip(*((features(x), y) for x, y in batches), strict=True)
        kept = None if alone or mine else 0  # a process without a share has looked at one image for the shapes
        return self.processes.all_gather(torch.cat(rows)[:kept]), self.processes.all_gather(torch.cat(labels)[:kept])


def sum_and_backward(losses: Losses) -> None:
    """Back-propagate the sum of the terms."""
    torch.stack(list(losses.values())).sum().backward()


def plain_step(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser step."""
    optimizer.step()


@dataclass(frozen=True)
class Stage:
    """A piece of training that the engine runs.

    Attributes:
        loss: (x, y) to named terms, each a scalar mean over the batch.
        name: shown in progress and logs.
        data: samples as (x, y) that the method holds itself; None for the task's augmented training set.
        recipe: of this stage alone, which the user's ``train.*`` leaves as it is; None for the method's own.
        params: what is optimised; None for everything that requires gradients.
        prepare: runs once before the first step, in evaluation mode and without gradients; not again when a run
            resumes inside the stage.
        backward: from terms to gradients; the place for gradients that differ per term.
        step: takes the optimiser's step; the place for projections of the gradient or of the update.
        gradients: those that ``backward`` keeps elsewhere than in ``.grad``; processes sum both.
        averages: buffers that ``loss`` moved by what it saw of the batch; processes average them by their shares.
    """

    loss: Callable[[Tensor, Tensor], Losses]
    name: str = "fit"
    data: Samples | None = None
    recipe: Recipe | None = None
    params: Sequence[nn.Parameter] | None = None
    prepare: Callable[[], None] | None = None
    backward: Callable[[Losses], None] = sum_and_backward
    step: Callable[[torch.optim.Optimizer], None] = plain_step
    gradients: Callable[[], Sequence[Tensor]] = tuple
    averages: Callable[[], Sequence[Tensor]] = tuple


class Method(Growing):
    """Base of every method.

    A subclass is registered by name; the keyword-only arguments of its constructor are its options. Its
    learned state lives in parameters and buffers only, and ``stages`` has no side effects, so that a run can
    stop and resume anywhere.

    Attributes:
        recipe: the paper's training recipe.
        needs: the kind of backbone that it works on.
        trains_backbone: whether the backbone learns (baselines); otherwise it is frozen and bit-equal.
        pretrained: parts by name that are never trained and come from the weights again, so that no state holds them.
        frozen: the plain backbone with its caches; None where the backbone learns.
        data_seen: the training data that a task is learned from, which results say: "current task"; "memory" for
            samples that the method kept of earlier ones as well; "all" of all tasks so far (upper bounds only).
        scores_are_logits: whether the softmax of the scores says anything; cosines, for example, are not logits.
        no_effect: for an option, another one and its values beside which the first has no effect; to set both is an
            error.
        default_readout: read-out of the backbone where the user names none; None for that of the weights.
        protocol: "sample" when every sample is scored alone; anything else is stamped on the results.
    """

    name: ClassVar[str] = ""
    recipe: ClassVar[Recipe] = Recipe()
    needs: ClassVar[type[Backbone]] = Backbone
    data_seen: ClassVar[Literal["current task", "memory", "all"]] = "current task"
    default_readout: ClassVar[str | None] = None
    protocol: ClassVar[str] = "sample"
    scores_are_logits: ClassVar[bool] = True
    no_effect: ClassVar[Mapping[str, tuple[str, tuple[Any, ...]]]] = {}

    task_sizes: Tensor

    def __init__(self, backbone: Backbone, trains_backbone: bool = False) -> None:
        super().__init__()
        if self.needs is not Backbone:
            check_kind(f"method {self.name}", backbone, self.needs)
        self.trains_backbone = trains_backbone
        self.pretrained: tuple[str, ...] = () if trains_backbone else ("backbone",)
        self.backbone = backbone.requires_grad_(trains_backbone)
        self.register_buffer("task_sizes", torch.zeros(0, dtype=torch.int64))
        self.frozen = None if trains_backbone else FrozenBackbone(backbone)

    def query(self, x: Tensor) -> Tensor:
        """Features q(x), (B, D), of the plain backbone, without gradients; a frozen one looks them up."""
        if self.frozen is not None:
            return self.frozen.features(x, training=self.training)
        with torch.no_grad():
            return self.backbone(x)

    def states(self, x: Tensor, layer: int) -> Tokens:
        """States (B, N, D) that enter a layer of the plain backbone, without gradients; looked up as features are."""
        if self.frozen is not None:
            return self.frozen.states(x, layer)
        with torch.no_grad():
            return self.backbone.run(self.backbone.embed(x), stop=layer)

    @property
    def n_tasks(self) -> int:
        """Tasks begun so far."""
        return len(self.task_sizes)

    @property
    def n_seen(self) -> int:
        """Classes of the tasks begun so far."""
        return int(self.task_sizes.sum())

    @property
    def task_of_class(self) -> Tensor:
        """The task (n_seen,) of every class."""
        return torch.arange(self.n_tasks, device=self.device).repeat_interleave(self.task_sizes)

    @property
    def exemplars(self) -> int:
        """Training samples that are kept for later tasks."""
        return sum(len(part) for part in self.modules() if isinstance(part, Exemplars))

    @property
    def device(self) -> torch.device:
        """Where the method computes."""
        return self.task_sizes.device

    def begin_task(self, task: LearnTask) -> None:
        """Allocate what the task needs; subclasses call this first.

        Raises:
            InputError: if the task's classes do not continue the ones seen.
        """
        if task.index != self.n_tasks or task.classes.start != self.n_seen:
            raise InputError(
                f"begin_task: task {self.n_tasks} must start at class {self.n_seen}, got task {task.index} "
                f"starting at class {task.classes.start}."
            )
        size = self.task_sizes.new_tensor([len(task.classes)])
        self.task_sizes = torch.cat([self.task_sizes, size])

    def stages(self, task: LearnTask) -> Iterable[Stage]:  # noqa: ARG002 - subclasses read the task
        """The pieces of training of a task, in order; without side effects."""
        return [Stage(self.loss)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Named loss terms of a batch of the newest task."""
        raise NotImplementedError

    def end_task(self, task: LearnTask) -> None:
        """Close a task: prototypes, statistics."""

    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) of inputs; row i depends on input i alone."""
        raise NotImplementedError

    def learned_state(self) -> dict[str, Tensor]:
        """All learned tensors: the state dict without what stays pre-trained, wherever in the method it is held."""
        return {k: v for k, v in self.state_dict().items() if not self._pretrained_key(k)}

    def _pretrained_key(self, key: str) -> bool:
        return not set(self.pretrained).isdisjoint(key.split(".")[:-1])

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`learned_state` returned, at whatever size it has.

        Raises:
            InputError: if tensors are missing or unknown.
        """
        missing, unknown = self.load_state_dict(state, strict=False)
        missing = [k for k in missing if not self._pretrained_key(k)]
        if missing or unknown:
            raise InputError(f"The saved state does not fit {self.name}: missing {missing}, unknown {unknown}.")


@runtime_checkable
class Additive(Protocol):
    """A method whose learned state is sums over samples, so that the states of two learners add."""

    def merge(self, other: Any, labels: Tensor) -> None:
        """Add the sums of another one, to the same as if the samples of both had been learned at once.

        Args:
            other: the same method with the same options on the same frozen backbone.
            labels: (classes of the other,) their numbers here. Numbers of known classes join, further ones continue
                those known.

        Raises:
            InputError: if the sums are of different things, such as features by different random projections.
        """
        ...


B = TypeVar("B", bound=Backbone)


def check_kind(what: str, backbone: Backbone, kind: type[B]) -> B:
    """The backbone, if it is of the kind that a method or an option of one works on.

    Raises:
        InputError: naming both.
    """
    if not isinstance(backbone, kind):
        name = f" {backbone.origin.name!r}" if backbone.origin is not None else ""
        raise InputError(f"{what} needs {kind.kind}, but the backbone{name} is {backbone.kind}.")
    return backbone


def check_layers(option: str, layers: Sequence[int] | None, depth: int, where: str = "method") -> tuple[int, ...]:
    """Layer numbers of an option, each once and inside the encoder; None names all.

    Args:
        option: its name.
        layers: as given.
        depth: layers of the encoder.
        where: what the option stands under.

    Raises:
        InputError: if one is outside [0, depth - 1] or named twice.
    """
    layers = range(depth) if layers is None else layers
    if any(not 0 <= layer < depth for layer in layers) or len(set(layers)) < len(layers):
        raise InputError(f"{where}.{option} must name layers in [0, {depth - 1}], each once, got {list(layers)}.")
    return tuple(layers)


def check_positive(**options: int) -> None:
    """Make sure that sizes are at least 1.

    Raises:
        InputError: naming the first that is not.
    """
    for option, value in options.items():
        if value < 1:
            raise InputError(f"method.{option} must be at least 1, got {value}.")


class TaskInferring(Method):
    """Base of methods that infer the task of each sample and then score under it.

    The evaluator uses both halves to report how often the task is right and what a perfect guess would give.
    """

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) that each input belongs to each task; row i depends on input i alone."""
        raise NotImplementedError

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """All ways in which this method can weigh the tasks of inputs, by name, whichever it was told to use."""
        return {"keys": self.task_scores}

    def infer_task(self, x: Tensor) -> Tensor:
        """Task number (B,) of each input: the one with the most evidence."""
        return self.task_scores(x).argmax(1)

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Scores (B, n_seen) when input i is taken to be of task ``tasks[i]``."""
        raise NotImplementedError

    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) under the inferred tasks."""
        return self.scores_given_task(x, self.infer_task(x))
