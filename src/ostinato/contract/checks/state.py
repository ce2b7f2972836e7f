"""Checks of the learned state: complete, frozen where it must be, precise, and trained."""

from __future__ import annotations

import torch

from ostinato.contract.case import Case, ContractViolation, DoesNotApply, check_same
from ostinato.contract.harness import learn_task_of, scores
from ostinato.methods.base import Method, Stage
from ostinato.nn import PerTask
from ostinato.training.callbacks import Callback


def all_learned_state_is_saved(case: Case) -> None:
    """A new method that loads the learned tensors gives the same scores."""
    reloaded = case.reloaded(case.learned.learned_state())
    if reloaded.n_seen != case.learned.n_seen:
        raise ContractViolation(f"n_seen is {reloaded.n_seen}, but it was {case.learned.n_seen}.")
    check_same("reloaded with the same state", scores(reloaded, case.inputs), scores(case.learned, case.inputs))


def a_frozen_backbone_is_bit_equal(case: Case) -> None:
    """Training does not change the backbone, which requires no gradient, unless the method sets ``trains_backbone``."""
    method = case.learned
    if method.trains_backbone:
        raise DoesNotApply("it trains its backbone, by declaration")
    now = method.backbone.state_dict()
    for key, value in case.backbone().state_dict().items():
        if not torch.equal(value.to(case.device), now[key]):
            raise ContractViolation(f"backbone.{key} changed.")
    if able := [n for n, p in method.backbone.named_parameters() if p.requires_grad]:
        raise ContractViolation(f"backbone.{able[0]} requires a gradient.")


def _frozen_parts(method: Method) -> dict[str, PerTask]:
    """Parameters per task that freeze when the next task begins."""
    return {n: m for n, m in method.named_modules() if isinstance(m, PerTask) and m.freeze_old and len(m)}


def private_parts_of_earlier_tasks_are_bit_equal(case: Case) -> None:
    """Parameters of a task in ``PerTask(freeze_old=True)`` do not change when later tasks are learned."""
    before, now = _frozen_parts(case.after(1)), _frozen_parts(case.after(2))
    if not before:
        raise DoesNotApply("it has no parameters per task")
    for name, part in before.items():
        if not torch.equal(part[0], now[name][0]):
            raise ContractViolation(f"{name}: the parameter of task 0 changed in task 1.")
        if now[name][0].requires_grad:
            raise ContractViolation(
                f"{name}: the parameter of task 0 still requires a gradient after task 1; freeze it."
            )


def learned_tensors_are_not_rounded(case: Case) -> None:
    """Learned tensors are fp32 or wider, or integers; only frozen weights are bf16."""
    kinds = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool)
    for key, value in case.learned.learned_state().items():
        if value.dtype not in kinds:
            raise ContractViolation(f"{key} is {value.dtype}.")


def what_is_said_to_be_trained_is(case: Case) -> None:
    """Every parameter that requires a gradient is in ``params`` of a stage; a stage without ``params`` names all."""
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
    """Notes the parameters that require a gradient when a stage begins, and those that get one."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.able: set[str] = set()
        self.reached: set[str] = set()

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:  # noqa: ARG002
        for name, p in self.method.named_parameters():
            if p.requires_grad and name not in self.able:
                self.able.add(name)
                p.register_hook(lambda _, name=name: self.reached.add(name))


def what_can_train_gets_a_gradient(case: Case) -> None:
    """Every parameter that requires a gradient gets one."""
    method = case.after(1)
    gradients = _Gradients(method)
    case.learn_task(method, 1, callback=gradients)
    # Methods that fine-tune a CLIP model on images also hold the parts for its texts.
    towers = ("backbone.text", "backbone.projection") if case.kind == "clip" and method.trains_backbone else ()
    if idle := sorted(n for n in gradients.able - gradients.reached if not n.startswith(towers)):
        raise ContractViolation(f"{idle[0]} requires a gradient, but no loss depends on it.")
