"""Checks of reproducible and resumable training."""

from __future__ import annotations

import random

import numpy as np
import torch

from ostinato.contract.case import Case, ContractViolation, DoesNotApply, check_same
from ostinato.contract.harness import Stop, StopAt, learn, scores
from ostinato.training.callbacks import Callback, Position


def _generators(device: torch.device) -> dict[str, object]:
    """States of the global random generators by library."""
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002 - the watched generator
    states: dict[str, object] = {
        "torch": torch.get_rng_state().tolist(),
        "numpy": str(numpys),
        "random": random.getstate(),
    }
    if device.type == "cuda":
        states["torch.cuda"] = torch.cuda.get_rng_state(device).tolist()
    return states


def same_seed_same_run(case: Case) -> None:
    """Two runs of one seed agree bit by bit, and do not change the global random generators."""
    first, second = case.make(), case.make()
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the watched generator
    random.seed(11)
    before = _generators(case.device)
    learn(first, case.stream)
    if drawn := [library for library, state in _generators(case.device).items() if state != before[library]]:
        raise ContractViolation(f"training drew from the global generator of {drawn[0]} outside the engine's seeds.")
    torch.manual_seed(99)
    learn(second, case.stream)
    check_same("a second run", scores(second, case.inputs), scores(first, case.inputs), exact=True)


class _Steps(Callback):
    """Counts the steps of a task."""

    def __init__(self) -> None:
        self.n = 0

    def on_step(self, position: Position, losses: dict[str, float], optimizer: torch.optim.Optimizer, n: int) -> None:  # noqa: ARG002
        self.n += 1


def a_run_stopped_anywhere_goes_on_to_the_same_result(case: Case) -> None:
    """State and optimiser of a step inside a task, loaded into a new method, lead to the same scores bit by bit."""
    for first in (1, 0):  # preferably a task after another one
        steps = _Steps()
        case.learn_task(case.after(first), first, callback=steps)
        if steps.n:
            break
    else:
        raise DoesNotApply("nothing is optimised in the first two tasks")
    want = scores(case.learned, case.inputs)
    for n in sorted({1, 2 * steps.n // 3} - {0}):
        method = case.after(first)
        callback = StopAt(method, n)
        try:
            case.learn_task(method, first, callback=callback)
        except Stop:
            method = case.reloaded(callback.state)
            case.learn_task(method, first, resume=(callback.position, callback.optimizer))
        for i in range(first + 1, len(case.stream)):
            case.learn_task(method, i)
        check_same(f"stopped after step {n} of task {first}", scores(method, case.inputs), want, exact=True)


def the_state_between_tasks_is_enough_to_go_on(case: Case) -> None:
    """A new method with the learned tensors after a task learns the next one bit by bit the same."""
    fresh = case.reloaded(case.after(2).learned_state())
    case.learn_task(fresh, 2)
    check_same("loaded after task 1", scores(fresh, case.inputs), scores(case.learned, case.inputs), exact=True)
