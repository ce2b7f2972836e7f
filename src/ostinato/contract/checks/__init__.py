"""Checks of the contract: the public functions of each module, in order; their docstrings say what must hold.

A check returns nothing if the contract holds, raises :class:`ostinato.contract.case.ContractViolation` if it does not,
and :class:`ostinato.contract.case.DoesNotApply` if the method lacks what it checks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ostinato.contract.case import Case
from ostinato.contract.checks import resuming, scoring, source, state

CHECKS: list[Callable[[Case], None]] = [
    check
    for module in (scoring, state, resuming, source)
    for check in vars(module).values()
    if inspect.isfunction(check) and check.__module__ == module.__name__ and not check.__name__.startswith("_")
]
"""All checks."""
