"""Checks of reproducible and resumable training."""

from __future__ import annotations

import random
from contextlib import suppress

import numpy as np
import torch

from ostinato.contract.case import Case, ContractViolation, DoesNotApply, check_same
from ostinato.contract.harness import Stop, StopAt, scores
from ostinato.methods.base import Method


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
    """Two runs of one seed agree bit by bit, scored between tasks or not, and leave global random generators alone."""
    want, method = scores(case.learned, case.inputs), case.make()
    torch.manual_seed(11)
    np.random.seed(11)  # noqa: NPY002 - the watched generator
    random.seed(11)
    got = want
    for i in range(len(case.stream)):
        before = _generators(case.device)
        case.learn_task(method, i)
        after = _generators(case.device)
        if drawn := [library for library in before if after[library] != before[library]]:
            raise ContractViolation(
                f"training drew from the global generator of {drawn[0]} outside the engine's seeds."
            )
        got = scores(method, case.inputs)  # between tasks too, as in runs
    check_same("a second run", got, want, exact=True)


def a_run_stopped_anywhere_goes_on_to_the_same_result(case: Case) -> None:
    """State and optimiser of a step inside a task, loaded into a new method, lead to the same result bit by bit."""
    first = next((i for i in (1, 0) if case.steps(i)), None)  # preferably a task after another one
    if first is None:
        raise DoesNotApply("nothing is optimised in the first two tasks")
    early, late = 1, 3 * case.steps(first) // 4
    if late > early:
        got, want = _stopped(case, first, early).learned_state(), case.after(first + 1).learned_state()
        if other := [key for key, value in want.items() if key not in got or not torch.equal(got[key], value)]:
            raise ContractViolation(f"stopped after step {early} of task {first}: {other[0]} is another one.")
    last = max(early, late)
    method = _stopped(case, first, last)
    for i in range(first + 1, len(case.stream)):
        case.learn_task(method, i)
    want = scores(case.learned, case.inputs)
    check_same(f"stopped after step {last} of task {first}", scores(method, case.inputs), want, exact=True)


def _stopped(case: Case, i: int, n: int) -> Method:
    """The method after task ``i``, stopped after step ``n`` of it and resumed by a new method."""
    method = case.after(i)
    callback = StopAt(method, n)
    with suppress(Stop):
        case.learn_task(method, i, callback=callback)
    method = case.reloaded(callback.state)
    case.learn_task(method, i, resume=(callback.position, callback.optimizer))
    return method


def the_state_between_tasks_is_enough_to_go_on(case: Case) -> None:
    """A new method with the learned tensors after a task learns the next one bit by bit the same."""
    fresh = case.reloaded(case.after(2).learned_state())
    case.learn_task(fresh, 2)
    check_same("loaded after task 1", scores(fresh, case.inputs), scores(case.learned, case.inputs), exact=True)
