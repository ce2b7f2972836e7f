"""What must hold for every method, whatever its paper, each as one function of a case.

A check returns nothing where the contract holds, raises :class:`ContractViolation` where it does not, and
:class:`DoesNotApply` where the method has no such part.
"""

from __future__ import annotations

import inspect
import random
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ostinato.contract.harness import SETTINGS, Stop, StopAt, inputs_of, learn, learn_task_of, make, scores, settings_on
from ostinato.contract.tiny_models import BACKBONES, Kind, tiny_stream, unpadded
from ostinato.lookup import executed_anew, file_of
from ostinato.methods.base import Method, Stage, TaskInferring
from ostinato.nn import PerTask
from ostinato.registry import options_schema, parts_of, sources_of_options
from ostinato.streams import StreamOptions, TaskStream
from ostinato.training.callbacks import Callback, Position
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import prepare


class ContractViolation(AssertionError):
    """What was found instead of what must hold."""


class DoesNotApply(Exception):
    """Why a check says nothing about a method."""


@dataclass(frozen=True)
class Case:
    """A method on a kind of toy encoder.

    Attributes:
        method: its class.
        kind: of the encoder.
        options: of the method.
        device: that it computes on.
    """

    method: type[Method]
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    device: torch.device = SETTINGS.device
    _after: list[Method] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def stream(self) -> TaskStream:
        """Five classes in three tasks, the last one of a single class."""
        return tiny_stream(self.kind)

    @cached_property
    def settings(self) -> Settings:
        """How it is taught."""
        return settings_on(self.device)

    @cached_property
    def inputs(self) -> Tensor:
        """Test samples of all tasks."""
        return self.inputs_upto(len(self.stream))

    def inputs_upto(self, n_tasks: int) -> Tensor:
        """Test samples of the first tasks."""
        return inputs_of(self.stream, n_tasks, self.device)

    @cached_property
    def learned(self) -> Method:
        """The method after all tasks; checks leave it as it is."""
        return self.after(len(self.stream))

    def make(self) -> Method:
        """The untaught method."""
        return self._placed(make(self.method, self.kind, **self.options))

    def _placed(self, method: Method) -> Method:
        prepare(method, self.device, self.settings.dtype)
        return method

    def after(self, n_tasks: int) -> Method:
        """The method after the first tasks, which may be changed: what was learned is copied, not learned again."""
        if not self._after:
            self._after.append(self.make())
        for i in range(len(self._after) - 1, n_tasks):
            method = deepcopy(self._after[i])
            learn_task(method, learn_task_of(method, self.stream, i), self.settings)
            self._after.append(method)
        return deepcopy(self._after[n_tasks])

    def reloaded(self, state: dict[str, Tensor]) -> Method:
        """A new method, of a new execution of its file, that is given copies of learned tensors and nothing else."""
        reloaded = self._placed(make(executed_anew(self.method), self.kind, **self.options))
        reloaded.load_learned_state({k: v.clone() for k, v in state.items()})
        return reloaded


CHECKS: list[Callable[[Case], None]] = []
"""All checks; their docstrings say what must hold."""


def _check(function: Callable[[Case], None]) -> Callable[[Case], None]:
    CHECKS.append(function)
    return function


def _same(what: str, got: Tensor, want: Tensor, *, exact: bool = False) -> None:
    """Compare scores: bit by bit, or to what a different order of sums explains.

    Raises:
        ContractViolation: with the largest difference and where it is.
    """
    if got.shape != want.shape:
        raise ContractViolation(f"{what}: the shape is {tuple(got.shape)} where it was {tuple(want.shape)}.")
    close = torch.equal(got, want) if exact else torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    if not close:
        apart = (got - want).abs().flatten(1).amax(1)
        worst = int(apart.argmax())
        tail = ", and must not differ in one bit" if exact else ""
        raise ContractViolation(f"{what}: scores of sample {worst} differ by {apart[worst]:.3g}{tail}.")


# It works at all


@_check
def it_runs_through_a_stream(case: Case) -> None:
    """Three tasks run through, and scores are numbers, one per sample and class seen; not whether they are good."""
    values = scores(case.learned, case.inputs)
    want = (len(case.inputs), len(case.stream.class_names))
    if tuple(values.shape) != want:
        raise ContractViolation(f"scores must be (samples, classes seen) = {want}, got {tuple(values.shape)}.")
    if not bool(values.isfinite().all()):
        raise ContractViolation(
            "scores are not all finite numbers. Where a class cannot be, say so by a low one: -inf is no valid JSON, "
            "and a difference of two is no number."
        )


# 1. One sample, one answer


@_check
def a_score_does_not_depend_on_its_batch(case: Case) -> None:
    """A sample has the same scores alone, in any batch and at any place in it."""
    x, method = case.inputs, case.learned
    together = scores(method, x)
    alone = torch.cat([scores(method, unpadded(x[i : i + 1])) for i in range(len(x))])
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    _same("alone, not in a batch", alone, together)
    _same("in a batch of another order", scores(method, x[shuffle]), together[shuffle])
    if method.protocol != "sample":
        raise ContractViolation(
            f"its protocol says {method.protocol!r}, which is for scores that do depend on their batch."
        )


@_check
def every_rule_weighs_every_task_for_each_sample_alone(case: Case) -> None:
    """Each way to infer the task gives (samples, tasks), the same alone and in a batch."""
    method, x = case.learned, case.inputs[:7]
    if not isinstance(method, TaskInferring):
        raise DoesNotApply("it infers no task")
    with torch.inference_mode():
        for rule, weigh in method.rules().items():
            evidence = weigh(x)
            if evidence.shape != (len(x), method.n_tasks):
                raise ContractViolation(
                    f"rule {rule!r} must give {(len(x), method.n_tasks)}, got {tuple(evidence.shape)}."
                )
            _same(f"rule {rule!r}", torch.cat([weigh(unpadded(x[i : i + 1])) for i in range(len(x))]), evidence)
        if not torch.equal(method.infer_task(x), method.task_scores(x).argmax(1)):
            raise ContractViolation("infer_task must be the task with the largest task_scores.")


# 2. No leak


@_check
def scores_are_given_the_input_alone(case: Case) -> None:
    """``scores(self, x)`` takes neither labels nor tasks."""
    names = list(inspect.signature(case.method.scores).parameters)
    if len(names) != 2:
        raise ContractViolation(f"scores takes {names}.")


# 3. Open-ended


@_check
def scores_cover_exactly_the_classes_seen(case: Case) -> None:
    """After every task there is one score per class seen."""
    method = case.make()
    for i, n_seen in enumerate((2, 4, 5)):  # one method that is scored between tasks, as runs do it
        learn_task(method, learn_task_of(method, case.stream, i), case.settings)
        found = scores(method, case.inputs_upto(i + 1)).shape[1]
        if not found == n_seen == method.n_seen:
            raise ContractViolation(f"after {n_seen} classes there are {found} scores, and n_seen is {method.n_seen}.")


@_check
def nothing_is_sized_by_what_is_to_come(case: Case) -> None:
    """The first task is learned alike, bit by bit, whether the stream goes on or not."""
    x = case.inputs_upto(1)
    names = case.stream.class_names[:2]
    alone = TaskStream(case.stream.source, StreamOptions(tasks=[names], validation=0))
    first = scores(learn(case.make(), alone), x)
    _same("in a stream of one task", first, scores(case.after(1), x), exact=True)


@_check
def a_task_of_one_class_is_learned(case: Case) -> None:
    """A single class, with none to be told apart from but those before, leaves every parameter finite."""
    for name, p in case.learned.named_parameters():
        if not bool(p.isfinite().all()):
            raise ContractViolation(f"{name} is not finite after a task of one class.")


@_check
def tasks_continue_the_classes_seen(case: Case) -> None:
    """``begin_task`` refuses a task that does not start where the one before ended: call ``super().begin_task``."""
    method = case.make()
    try:
        method.begin_task(learn_task_of(method, case.stream, 1))
    except Exception as error:
        if "must start at class 0" not in str(error):
            raise
        return
    raise ContractViolation("the second task was accepted as the first one.")


# 4. State


@_check
def all_learned_state_is_saved(case: Case) -> None:
    """A reloaded that is given the learned tensors, and has seen no sample, gives the same scores."""
    reloaded = case.reloaded(case.learned.learned_state())
    if reloaded.n_seen != case.learned.n_seen:
        raise ContractViolation(f"n_seen is {reloaded.n_seen} where it was {case.learned.n_seen}.")
    _same("a reloaded with the same state", scores(reloaded, case.inputs), scores(case.learned, case.inputs))


@_check
def a_frozen_backbone_is_bit_equal(case: Case) -> None:
    """Training leaves the backbone as it was, without gradients, unless the method declares ``trains_backbone``."""
    method = case.learned
    if method.trains_backbone:
        raise DoesNotApply("it trains its backbone, by declaration")
    now = method.backbone.state_dict()
    for key, value in BACKBONES[case.kind]().state_dict().items():
        if not torch.equal(value.to(case.device), now[key]):
            raise ContractViolation(f"backbone.{key} changed.")
    if able := [n for n, p in method.backbone.named_parameters() if p.requires_grad]:
        raise ContractViolation(f"backbone.{able[0]} requires a gradient.")


def _private(method: Method) -> dict[str, PerTask]:
    """What is held per task and frozen when the next one begins."""
    return {n: m for n, m in method.named_modules() if isinstance(m, PerTask) and m.freeze_old and len(m)}


@_check
def private_parts_of_earlier_tasks_are_bit_equal(case: Case) -> None:
    """What is held in ``PerTask(freeze_old=True)`` for a task stays as it was when later ones are learned."""
    before, now = _private(case.after(1)), _private(case.after(2))
    if not before:
        raise DoesNotApply("it keeps nothing of a task apart")
    for name, part in before.items():
        if not torch.equal(part[0], now[name][0]):
            raise ContractViolation(f"{name}: what belongs to task 0 was changed in task 1.")
        if now[name][0].requires_grad:
            raise ContractViolation(
                f"{name}: a tensor of task 0 still requires a gradient after task 1; freeze it there."
            )


@_check
def learned_tensors_are_not_rounded(case: Case) -> None:
    """Learned tensors are fp32 or wider, or whole numbers; only frozen weights are bf16."""
    kinds = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
    for key, value in case.learned.learned_state().items():
        if value.dtype not in kinds:
            raise ContractViolation(f"{key} is {value.dtype}.")


@_check
def what_is_said_to_be_trained_is(case: Case) -> None:
    """The parameters that require a gradient are those that stages name, so that counting them counts what is trained.

    A stage without ``params`` names all.
    """
    for n_tasks in (0, 1):
        method = case.after(n_tasks)
        task = learn_task_of(method, case.stream, n_tasks)
        method.train()
        method.begin_task(task)
        able = {n: p for n, p in method.named_parameters() if p.requires_grad}
        given = [stage.params for stage in method.stages(task)]
        if None in given:
            continue
        named = {id(p) for params in given for p in params or []}
        if idle := [n for n, p in able.items() if id(p) not in named]:
            raise ContractViolation(f"{idle[0]} requires a gradient in task {n_tasks}, but no stage trains it.")


class _Gradients(Callback):
    """A callback that notes which parameters can train when a stage begins, and which of them get a gradient."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.able: set[str] = set()
        self.reached: set[str] = set()

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:  # noqa: ARG002
        for name, p in self.method.named_parameters():
            if p.requires_grad and name not in self.able:
                self.able.add(name)
                p.register_hook(lambda _, name=name: self.reached.add(name))


@_check
def what_can_train_gets_a_gradient(case: Case) -> None:
    """Every parameter that requires a gradient is reached by one."""
    method = case.after(1)
    gradients = _Gradients(method)
    learn_task(method, learn_task_of(method, case.stream, 1), case.settings, gradients)
    # Fine-tuning a CLIP model on images is given, and counts, what only its texts use.
    towers = ("backbone.text", "backbone.projection") if case.kind == "clip" and method.trains_backbone else ()
    if idle := sorted(n for n in gradients.able - gradients.reached if not n.startswith(towers)):
        raise ContractViolation(f"{idle[0]} requires a gradient, and no loss depends on it.")


# 5. Same seed, same run; stop anywhere


def _generators(device: torch.device) -> dict[str, object]:
    """The states of the global random generators by library, a GPU's among them."""
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002 - what is watched
    states: dict[str, object] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(numpys),
        "random": random.getstate(),
    }
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).tolist()
    return states


@_check
def same_seed_same_run(case: Case) -> None:
    """Two runs of one seed agree bit by bit, and the global random generators are left alone."""
    first, second = case.make(), case.make()
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the global generator is what is watched
    random.seed(11)
    before = _generators(case.device)
    learn(first, case.stream)
    if drawn := [library for library, state in _generators(case.device).items() if state != before[library]]:
        raise ContractViolation(f"training drew from the global generator of {drawn[0]} outside the engine's seeds.")
    torch.manual_seed(99)
    learn(second, case.stream)
    _same("a second run", scores(second, case.inputs), scores(first, case.inputs), exact=True)


class _Steps(Callback):
    """A callback that counts the steps of a task."""

    def __init__(self) -> None:
        self.n = 0

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:  # noqa: ARG002
        self.n += 1


@_check
def a_run_stopped_anywhere_goes_on_to_the_same_result(case: Case) -> None:
    """State and optimiser after a step inside a task, loaded into a new method, lead to the same scores bit by bit."""
    for first in (1, 0):  # a task after others where something is optimised in it, or else the first one
        steps, method = _Steps(), case.after(first)
        learn_task(method, learn_task_of(method, case.stream, first), case.settings, steps)
        if steps.n:
            break
    else:
        raise DoesNotApply("nothing is optimised in the first two tasks")
    want = scores(case.learned, case.inputs)
    for n in sorted({1, 2 * steps.n // 3} - {0}):
        cut = case.after(first)
        task = learn_task_of(cut, case.stream, first)
        callback = StopAt(cut, n)
        try:
            learn_task(cut, task, case.settings, callback)
        except Stop:
            cut = case.reloaded(callback.state)
            learn_task(cut, task, case.settings, resume=(callback.position, callback.optimizer))
        for i in range(first + 1, len(case.stream)):
            learn_task(cut, learn_task_of(cut, case.stream, i), case.settings)
        _same(f"stopped after step {n} of task {first}", scores(cut, case.inputs), want, exact=True)


@_check
def the_state_between_tasks_is_enough_to_go_on(case: Case) -> None:
    """A new method with the learned tensors of after a task learns the next one bit by bit alike."""
    fresh = case.reloaded(case.after(2).learned_state())
    learn_task(fresh, learn_task_of(fresh, case.stream, 2), case.settings)
    _same("loaded after task 1", scores(fresh, case.inputs), scores(case.learned, case.inputs), exact=True)


# 6. One transformer


@_check
def there_is_no_transformer_in_it(case: Case) -> None:
    """The method's file computes no attention of its own; it edits the encoder."""
    pattern = r"scaled_dot_product|MultiheadAttention|nn\.Transformer|\.attn\b"
    if found := re.search(pattern, _text(case.method)):
        raise ContractViolation(f"its file holds {found[0]!r}.")


def _text(method: type[Method]) -> str:
    """The text of the file that a method is in, as it was run."""
    if (file := file_of(method)) is not None:
        return file.text.decode("utf-8", errors="replace")
    try:
        return inspect.getsource(inspect.getmodule(method) or method)
    except (OSError, TypeError):  # typed into an interpreter
        raise DoesNotApply("it is in no file that could be read") from None


# Options


@_check
def every_option_has_a_default_and_is_explained(case: Case) -> None:
    """Options run without being given, and stand under Args of the class's docstring as ``option: what it does``.

    Those of a part stand under Attributes of its options.
    """
    docs = [source.__doc__ or "" for source in sources_of_options(case.method)]
    for option, told in options_schema(case.method).model_fields.items():
        if told.is_required():
            raise ContractViolation(f"method.{option} has no default.")
        if not any(f"{option}:" in doc for doc in docs):
            raise ContractViolation(f"method.{option} is missing from Args.")
    for option, parts in parts_of(case.method).items():
        for part in parts:
            for key in part.own():
                if f"{key}:" not in (type(part).__doc__ or ""):
                    raise ContractViolation(
                        f"method.{option}.{key} is missing from Attributes of {type(part).__name__}."
                    )


@_check
def it_says_what_it_implements(case: Case) -> None:
    """The docstring of the file names its source, and has a paragraph 'Differences from the ...' (paper, code)."""
    if "Differences from the" not in (getattr(inspect.getmodule(case.method), "__doc__", None) or ""):
        raise ContractViolation("the docstring of its file does not say 'Differences from the paper: ...' (or 'none').")
