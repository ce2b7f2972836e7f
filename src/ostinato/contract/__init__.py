"""The contract that every method keeps, and how a method is held against it.

``ostinato check METHOD`` runs it on a method of one's own; the test suite runs it on every method of the package.
Everything happens on tiny random encoders, in seconds.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from ostinato.contract.checks import CHECKS, Case, ContractViolation, DoesNotApply
from ostinato.contract.harness import SETTINGS
from ostinato.contract.tiny_models import BACKBONES, Kind
from ostinato.errors import InputError
from ostinato.methods.base import Method
from ostinato.registry import check_options

__all__ = ["CHECKS", "Case", "Checked", "ContractViolation", "DoesNotApply", "check_method", "kinds_of"]


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        kind: of the toy encoder.
        check: its name, in words.
        demand: what must hold.
        outcome: "holds", "broken", or "does not apply".
        found: why it is broken or does not apply; empty where it holds.
    """

    kind: Kind
    check: str
    demand: str
    outcome: Literal["holds", "broken", "does not apply"]
    found: str = ""


def kinds_of(method: type[Method]) -> list[Kind]:
    """The kinds of toy encoders that a method works on."""
    return [kind for kind in get_args(Kind) if issubclass(type(BACKBONES[kind]()), method.needs)]


def check_method(method: type[Method], where: torch.device = SETTINGS.device, /, **options: Any) -> Iterator[Checked]:
    """Hold a method against the contract, on every kind of encoder that it works on.

    Where it cannot run through a stream at all, nothing further is checked on that kind.

    Args:
        method: the class.
        where: the device that it computes on.
        options: of the method, for example smaller sizes.

    Yields:
        An outcome per check and kind.

    Raises:
        InputError: if the method does not take these options, or works on none of the encoders.
    """
    check_options(method, options)
    kinds = kinds_of(method)
    if not kinds:
        raise InputError(f"{method.name} needs {method.needs.kind}, and there is no toy encoder of that kind.")
    refused: list[InputError] = []
    for kind in kinds:
        case = Case(method, kind, options, where)
        try:
            case.make()
        except InputError as error:  # layers that are too high for it, for example
            refused.append(error)
            if len(refused) == len(kinds):
                raise
            name, demand = _told_of(CHECKS[0])
            yield Checked(kind, name, demand, "does not apply", f"the options do not fit this encoder ({error})")
            continue
        except Exception:  # which the first check will find  # nosec B110
            pass
        for check in CHECKS:
            result = _outcome(case, check)
            yield result
            if check is CHECKS[0] and result.outcome == "broken":
                break


def _told_of(check: Callable[[Case], None]) -> tuple[str, str]:
    """What a check is called, and what must hold."""
    return check.__name__.replace("_", " "), inspect.getdoc(check) or ""


def _outcome(case: Case, check: Callable[[Case], None]) -> Checked:
    outcome, found = "holds", ""
    try:
        check(case)
    except DoesNotApply as why:
        outcome, found = "does not apply", str(why)
    except ContractViolation as broken:
        outcome, found = "broken", str(broken)
    except Exception as error:  # of the method, which is what is looked for
        outcome, found = "broken", _told(error, sys.modules[case.method.__module__])
    return Checked(case.kind, *_told_of(check), outcome, found)


def _told(error: Exception, module: ModuleType) -> str:
    """An error in one line, with the innermost place in a module, or at all where it did not pass there."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [*frames, *(f for f in frames if f.filename == getattr(module, "__file__", None))][-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
