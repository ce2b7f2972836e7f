"""Base classes of methods: recipe, task, stage, method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, LayerPlan, Tokens
from ostinato.backbones.frozen import FrozenBackbone
from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.nn.exemplars import Exemplars
from ostinato.nn.growing import Growing
from ostinato.streams.base import Samples

Losses = dict[str, Tensor]

NOTHING_REFINES = (
    "no part of this method learns more samples of a known class, as they would train it anew without the samples of "
    "the other classes."
)


@dataclass(frozen=True)
class Recipe:
    """Optimisation settings of a stage; ``train.<field>`` overrides a field.

    Attributes:
        epochs: passes over the stage's data.
        batch_size: samples per step.
        lr: initial learning rate; never scaled by the batch size.
        optimizer: "adam", "adamw" or "sgd".
        momentum: of SGD.
        weight_decay: L2 for adam and sgd, decoupled for adamw.
        schedule: per step: "constant"; "cosine", half a period to 0; "quarter_cosine", a quarter period to 0;
            "multistep", times 0.1 at each milestone. "cosine_per_epoch" is the cosine, constant within an epoch.
        milestones: fractions of the stage's steps, for "multistep".
        clip: largest global gradient norm, or None.
        backbone_lr_factor: factor on the learning rate of the backbone's weights, for methods that train them.
    """

    epochs: int = 5
    batch_size: int = 32
    lr: float = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "cosine", "cosine_per_epoch", "quarter_cosine", "multistep"] = "constant"
    milestones: tuple[float, ...] = ()
    clip: float | None = None
    backbone_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        """Raise InputError for a field out of range."""
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
            "backbone_lr_factor": (0 < self.backbone_lr_factor < math.inf, "be positive"),
        }
        for field, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"train.{field} must {rule}, got {getattr(self, field)}.")


@dataclass(frozen=True)
class LearnTask:
    """Classes and training data of a task.

    Attributes:
        index: number of the task, from 0.
        classes: labels; they continue those of the task before.
        train: training samples with a new augmentation in every epoch.
        eval_batches: iterates over the training samples, or those at given positions, under the test transform and
            in a fixed order, as (x, y) on the method's device.
        processes: that share the training.
        class_names: one per label.
    """

    index: int
    classes: range
    train: Samples
    eval_batches: Callable[..., Iterator[tuple[Tensor, Tensor]]]
    processes: ProcessGroup = SINGLE_PROCESS
    class_names: tuple[str, ...] = ()

    def extract_features(self, features: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Features (n, D) and labels (n,) of all training samples under the test transform, without gradients.

        Every process computes its share; all receive the whole.

        Args:
            features: from inputs (B, ...) to (B, D).
        """
        alone = self.processes.size == 1
        shard = [] if alone else self.processes.shard(range(len(self.train)))
        batches = self.eval_batches() if alone else self.eval_batches(shard or [0])
        with torch.no_grad():
            rows, labels = zip(*((features(x), y) for x, y in batches), strict=True)
        kept = None if alone or shard else 0  # a process with an empty shard computes one sample for the shapes
        return self.processes.all_gather(torch.cat(rows)[:kept]), self.processes.all_gather(torch.cat(labels)[:kept])


def sum_and_backward(losses: Losses) -> None:
    """Back-propagate the sum of the loss terms."""
    torch.stack(list(losses.values())).sum().backward()


def plain_step(optimizer: torch.optim.Optimizer) -> None:
    """Step the optimiser."""
    optimizer.step()


@dataclass(frozen=True)
class Stage:
    """A stage of training, run by the training loop.

    Attributes:
        loss: from (x, y) to named terms, each a scalar mean over the batch.
        name: for progress and logs.
        data: the method's samples as (x, y); None for the task's augmented training set.
        recipe: fixed recipe of this stage, not changed by ``train.*``; None for the method's recipe.
        params: trained parameters; None for all that require gradients.
        prepare: called once before the first step, in evaluation mode and without gradients; not called again when a
            run resumes inside the stage.
        backward: from loss terms to gradients; override it for gradients that differ per term.
        step: steps the optimiser; override it to project gradients or updates.
        gradients: gradients kept outside ``.grad``; processes sum both.
        averages: buffers that ``loss`` updates from its part of the batch; processes average them by their shares.
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
    """Base class of methods.

    The keyword-only arguments of a subclass's constructor are its options. Learned state lives in parameters and
    buffers only, and ``stages`` has no side effects, so that a run can stop and resume anywhere.

    Attributes:
        recipe: the paper's training recipe.
        needs: required kind of backbone.
        trains_backbone: whether the backbone is trained (baselines); otherwise it stays frozen and bit-equal.
        pretrained: names of modules that are never trained; they are loaded from the weights, not from a saved state.
        frozen: the frozen backbone with its caches; None if the backbone is trained.
        data_seen: training data of a task, recorded in results: "current task"; "memory" for kept samples of earlier
            tasks as well; "all" for the data of all tasks so far (upper bounds only).
        no_effect: per option, another option and its values under which the first has no effect; setting both is an
            error.
        default_readout: read-out of the backbone if the user names none; None for that of the weights.
        protocol: "sample" if every sample is scored alone; results record it.
    """

    name: ClassVar[str] = ""
    recipe: ClassVar[Recipe] = Recipe()
    needs: ClassVar[type[Backbone]] = Backbone
    data_seen: ClassVar[Literal["current task", "memory", "all"]] = "current task"
    default_readout: ClassVar[str | None] = None
    protocol: ClassVar[str] = "sample"
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
        """Features q(x), (B, D), of the plain backbone without gradients, cached if it is frozen."""
        if self.frozen is not None:
            return self.frozen.features(x, training=self.training)
        with torch.no_grad():
            return self.backbone(x)

    def features_under(self, x: Tensor, plans: Sequence[LayerPlan | None], start: int) -> list[Tensor]:
        """Features (B, D) under each of several plans without gradients, cached if the backbone is frozen.

        For edits that no longer change, see :meth:`ostinato.backbones.frozen.FrozenBackbone.features_under`.
        """
        if self.frozen is not None:
            return self.frozen.features_under(x, plans, start)
        tokens = self.states(x, start)
        with torch.no_grad():
            return [self.backbone.features(tokens, plan, start=start) for plan in plans]

    def states(self, x: Tensor, layer: int) -> Tokens:
        """States (B, N, D) before a layer of the plain backbone without gradients, cached if it is frozen."""
        if self.frozen is not None:
            return self.frozen.states(x, layer)
        with torch.no_grad():
            return self.backbone.run(self.backbone.embed(x), stop=layer)

    @property
    def n_tasks(self) -> int:
        """Number of tasks begun."""
        return len(self.task_sizes)

    @property
    def classes_per_task(self) -> list[int]:
        """Number of classes of each task begun."""
        return self.task_sizes.tolist()

    @property
    def n_seen(self) -> int:
        """Number of classes of the tasks begun."""
        return sum(self.classes_per_task)

    @property
    def task_of_class(self) -> Tensor:
        """Task (n_seen,) of every class."""
        return torch.arange(self.n_tasks, device=self.device).repeat_interleave(
            self.task_sizes, output_size=self.n_seen
        )

    @property
    def exemplars(self) -> int:
        """Number of training samples kept for later tasks."""
        return sum(len(part) for part in self.modules() if isinstance(part, Exemplars))

    @property
    def exemplar_bytes(self) -> int:
        """Bytes of the samples kept."""
        return sum(part.n_bytes for part in self.modules() if isinstance(part, Exemplars))

    @property
    def device(self) -> torch.device:
        """Device of the learned state."""
        return self.task_sizes.device

    def begin_task(self, task: LearnTask) -> None:
        """Allocate the state of a task; subclasses call this first.

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
        """Stages of the training of a task, in order; without side effects."""
        return [Stage(self.loss)]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Named loss terms of a batch of the newest task."""
        raise NotImplementedError

    def end_task(self, task: LearnTask) -> None:
        """Close a task: compute prototypes and statistics."""

    @property
    def refines(self) -> str | None:
        """Part that more samples of known classes refine, in words such as "the class means"; None if there is none."""
        return None

    def refine(self, task: LearnTask) -> None:  # noqa: ARG002 - overrides read the task
        """Learn more samples of known classes; methods whose ``refines`` names a part override it.

        It is called in evaluation mode and without gradients, and begins no task.

        Args:
            task: samples of known classes; its own ``classes`` are empty.

        Raises:
            InputError: if no part of the method can learn from them.
        """
        raise InputError(f"{self.name}: {NOTHING_REFINES}")

    def relabel(self, labels: Tensor) -> None:  # noqa: ARG002 - overrides read the numbers
        """Give every class a new number, by which classes are joined or dropped; closed-form methods override it.

        The caller sets ``task_sizes`` afterwards.

        Args:
            labels: (n_seen,) new numbers from 0, without gaps; classes of one number are joined, -1 drops a class.

        Raises:
            InputError: if the method's state cannot be taken apart by class.
        """
        raise InputError(
            f"{self.name} has trained its classes together, so that none can be removed or merged. Start a run on the "
            "classes to keep; methods in closed form, such as 'duet' and 'ranpac', can do without."
        )

    @property
    def shares(self) -> str | None:
        """Sum over samples of all classes, in words, in which a dropped class stays; None if there is none."""
        return None

    def forget(self, task: LearnTask) -> None:
        """Subtract all training samples of a class from what :attr:`shares` names, before the class is dropped.

        It is called in evaluation mode and without gradients; methods with a shared sum override it.

        Args:
            task: the samples; its own ``classes`` are empty.

        Raises:
            InputError: if they are not the samples learned.
        """
        raise InputError(f"{self.name} has no sum from which {len(task.train)} samples could be subtracted.")

    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) of inputs; row i depends on input i alone."""
        raise NotImplementedError

    def learned_state(self) -> dict[str, Tensor]:
        """The state dict without the tensors of ``pretrained`` modules."""
        return {k: v for k, v in self.state_dict().items() if not self._pretrained_key(k)}

    def _pretrained_key(self, key: str) -> bool:
        return not set(self.pretrained).isdisjoint(key.split(".")[:-1])

    def load_learned_state(self, state: dict[str, Tensor]) -> None:
        """Restore a :meth:`learned_state` of any size.

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


def check_kind(user: str, backbone: Backbone, kind: type[B]) -> B:
    """Return the backbone, or raise InputError if it is not of the kind that ``user``, a method or option, needs."""
    if not isinstance(backbone, kind):
        name = f" {backbone.origin.name!r}" if backbone.origin is not None else ""
        raise InputError(f"{user} needs {kind.kind}, but the backbone{name} is {backbone.kind}.")
    return backbone


def check_layers(option: str, layers: Sequence[int] | None, depth: int, where: str = "method") -> tuple[int, ...]:
    """Return the layers of an option, None for all, or raise InputError for one outside [0, depth - 1] or repeated."""
    layers = range(depth) if layers is None else layers
    if any(not 0 <= layer < depth for layer in layers) or len(set(layers)) < len(layers):
        raise InputError(f"{where}.{option} must name layers in [0, {depth - 1}], each once, got {list(layers)}.")
    return tuple(layers)


def check_positive(**options: int) -> None:
    """Raise InputError for the first option below 1."""
    for option, value in options.items():
        if value < 1:
            raise InputError(f"method.{option} must be at least 1, got {value}.")


class TaskInferring(Method):
    """Base class of methods that infer the task of each sample and score it under that task.

    The evaluator reports the accuracy of the inferred tasks and the accuracy under the true ones.
    """

    def task_scores(self, x: Tensor) -> Tensor:
        """Evidence (B, T) that each input belongs to each task; row i depends on input i alone."""
        raise NotImplementedError

    def rules(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """All rules of task inference of this method by name, each from inputs to evidence (B, T)."""
        return {"keys": self.task_scores}

    def infer_task(self, x: Tensor) -> Tensor:
        """Task (B,) with the most evidence for each input."""
        return self.task_scores(x).argmax(1)

    def scores_given_task(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Scores (B, n_seen) of input i under task ``tasks[i]``."""
        raise NotImplementedError

    def scores(self, x: Tensor) -> Tensor:
        """Scores (B, n_seen) under the inferred tasks."""
        return self.scores_given_task(x, self.infer_task(x))
