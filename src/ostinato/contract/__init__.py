"""Contract of methods, checked on tiny random encoders in seconds.

``ostinato check METHOD`` checks a user's method; the test suite checks every method of the package.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch

from ostinato.backbones import Backbone
from ostinato.contract.case import Case, ContractViolation, DoesNotApply
from ostinato.contract.checks import CHECKS
from ostinato.contract.harness import SETTINGS
from ostinato.contract.tiny_models import BACKBONES, Kind
from ostinato.errors import InputError
from ostinato.methods.base import Method
from ostinato.registry import check_options

__all__ = ["CHECKS", "Case", "Checked", "ContractViolation", "DoesNotApply", "check_method", "kinds_of"]

Outcome = Literal["holds", "broken", "does not apply"]


@dataclass(frozen=True)
class Checked:
    """Result of a check.

    Attributes:
        kind: of the tiny encoder.
        check: its name in words.
        demand: condition that must hold.
        outcome: "holds", "broken", or "does not apply".
        found: reason for "broken" or "does not apply"; else empty.
    """

    kind: Kind
    check: str
    demand: str
    outcome: Outcome
    found: str = ""


def kinds_of(method: type[Method]) -> list[Kind]:
    """Kinds of tiny encoders that a method supports."""
    return [kind for kind, cls in _classes().items() if issubclass(cls, method.needs)]


@cache
def _classes() -> dict[Kind, type[Backbone]]:
    """Class of the tiny encoder of each kind."""
    return {kind: type(BACKBONES[kind]()) for kind in get_args(Kind)}


def check_method(method: type[Method], where: torch.device = SETTINGS.device, /, **options: Any) -> Iterator[Checked]:
    """Yield the result of every check on every kind of encoder that a method supports.

    If a method cannot run through a stream, the kind's further checks are left out.

    Args:
        method: the class.
        where: device of the computation.
        options: of the method, for example smaller sizes.

    Raises:
        InputError: if the method refuses the options or supports none of the encoders.
    """
    check_options(method, options)
    kinds = kinds_of(method)
    if not kinds:
        raise InputError(f"{method.name} needs {method.needs.kind}, but there is no tiny encoder of that kind.")
    refused: list[InputError] = []
    for kind in kinds:
        case = Case(method, kind, options, where)
        try:
            case.make()
        except InputError as error:  # of too high layers, for example
            refused.append(error)
            if len(refused) == len(kinds):
                raise
            yield _checked(kind, CHECKS[0], "does not apply", f"the options do not fit this encoder ({error})")
            continue
        except Exception:  # found again by the first check  # nosec B110
            pass
        for check in CHECKS:
            result = _outcome(case, check)
            yield result
            if check is CHECKS[0] and result.outcome == "broken":
                break


def _checked(kind: Kind, check: Callable[[Case], None], outcome: Outcome, found: str = "") -> Checked:
    return Checked(kind, check.__name__.replace("_", " "), inspect.getdoc(check) or "", outcome, found)


def _outcome(case: Case, check: Callable[[Case], None]) -> Checked:
    try:
        check(case)
    except DoesNotApply as reason:
        return _checked(case.kind, check, "does not apply", str(reason))
    except ContractViolation as violation:
        return _checked(case.kind, check, "broken", str(violation))
    except Exception as error:  # of the method
        return _checked(case.kind, check, "broken", _describe(error, sys.modules[case.method.__module__]))
    return _checked(case.kind, check, "holds")


def _describe(error: Exception, module: ModuleType) -> str:
    """An error in a line, with its innermost place in a module, or else anywhere."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [*frames, *(f for f in frames if f.filename == getattr(module, "__file__", None))][-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
