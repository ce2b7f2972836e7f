"""Checks of scores: finite, for each sample alone, without leaks, for exactly the classes seen."""

from __future__ import annotations

import inspect

import torch

from ostinato.contract.case import Case, ContractViolation, DoesNotApply, check_same
from ostinato.contract.harness import learn, learn_task_of, scores
from ostinato.contract.tiny_models import unpadded
from ostinato.methods.base import TaskInferring
from ostinato.streams import StreamOptions, TaskStream


def it_runs_through_a_stream(case: Case) -> None:
    """Three tasks run, and scores are finite, one per sample and class seen; their accuracy does not count."""
    values = scores(case.learned, case.inputs)
    want = (len(case.inputs), len(case.stream.class_names))
    if tuple(values.shape) != want:
        raise ContractViolation(f"scores must be (samples, classes seen) = {want}, got {tuple(values.shape)}.")
    if not bool(values.isfinite().all()):
        raise ContractViolation(
            "scores must be finite numbers. To exclude a class, give it a low score: -inf is no valid JSON, and the "
            "difference of two is no number."
        )


def a_score_does_not_depend_on_its_batch(case: Case) -> None:
    """A sample has the same scores alone, in any batch and at any place in it."""
    x, method = case.inputs, case.learned
    together = scores(method, x)
    some = range(0, len(x), 3)  # two of each class
    alone = torch.cat([scores(method, unpadded(x[i : i + 1])) for i in some])
    shuffle = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    check_same("alone, not in a batch", alone, together[some])
    check_same("in a batch of another order", scores(method, x[shuffle]), together[shuffle])
    if method.protocol != "sample":
        raise ContractViolation(f"its protocol must be 'sample', as its scores are, got {method.protocol!r}.")


def every_rule_weighs_every_task_for_each_sample_alone(case: Case) -> None:
    """Each rule of task inference gives evidence (samples, tasks), the same alone and in a batch."""
    method, x = case.learned, case.inputs[:7]
    if not isinstance(method, TaskInferring):
        raise DoesNotApply("it infers no task")
    with torch.inference_mode():
        for name, rule in method.rules().items():
            evidence = rule(x)
            if evidence.shape != (len(x), method.n_tasks):
                raise ContractViolation(
                    f"rule {name!r} must give {(len(x), method.n_tasks)}, got {tuple(evidence.shape)}."
                )
            check_same(f"rule {name!r}", torch.cat([rule(unpadded(x[i : i + 1])) for i in range(len(x))]), evidence)
        if not torch.equal(method.infer_task(x), method.task_scores(x).argmax(1)):
            raise ContractViolation("infer_task must be the task with the largest task_scores.")


def scores_are_given_the_input_alone(case: Case) -> None:
    """``scores(self, x)`` takes neither labels nor tasks."""
    names = list(inspect.signature(case.method.scores).parameters)
    if len(names) != 2:
        raise ContractViolation(f"scores must take (self, x), got {names}.")


def scores_cover_exactly_the_classes_seen(case: Case) -> None:
    """After every task there is one score per class seen."""
    for i, n_seen in enumerate((2, 4, 5)):
        method = case.after(i + 1)
        found = scores(method, case.inputs_upto(i + 1)).shape[1]
        if not found == n_seen == method.n_seen:
            raise ContractViolation(f"after {n_seen} classes there are {found} scores, and n_seen is {method.n_seen}.")


def nothing_is_sized_by_what_is_to_come(case: Case) -> None:
    """The first task is learned bit by bit the same in a stream of one task and in a longer one."""
    x = case.inputs_upto(1)
    names = case.stream.class_names[:2]
    alone = TaskStream(case.stream.source, StreamOptions(tasks=[names], validation=0))
    first = scores(learn(case.make(), alone, settings=case.settings), x)
    check_same("in a stream of one task", first, scores(case.after(1), x), exact=True)


def a_task_of_one_class_is_learned(case: Case) -> None:
    """A task of a single class leaves every parameter finite."""
    for name, p in case.learned.named_parameters():
        if not bool(p.isfinite().all()):
            raise ContractViolation(f"{name} is not finite after a task of one class.")


def tasks_continue_the_classes_seen(case: Case) -> None:
    """``begin_task`` refuses a task that does not continue the classes seen: call ``super().begin_task``."""
    method = case.make()
    try:
        method.begin_task(learn_task_of(method, case.stream, 1))
    except Exception as error:
        if "must start at class 0" not in str(error):
            raise
        return
    raise ContractViolation("the second task was accepted as the first one.")
