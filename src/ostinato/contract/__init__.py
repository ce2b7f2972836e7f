"""The contract that every method keeps, and how a method is held against it.

``ostinato check METHOD`` runs it on a method of one's own; the test suite runs it on every method of the package.
Everything happens on tiny random encoders, in seconds.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ostinato.contract.checks import CHECKS, Broken, Case, DoesNotApply
from ostinato.contract.toys import BACKBONES, Kind
from ostinato.methods.base import Method
from ostinato.registry import check_options

__all__ = ["CHECKS", "Broken", "Case", "Checked", "DoesNotApply", "check_method", "kinds_of"]


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


def check_method(method: type[Method], **options: Any) -> Iterator[Checked]:
    """Hold a method against the contract, on every kind of encoder that it works on.

    Where it cannot learn a stream at all, nothing further is checked on that kind.

    Args:
        method: the class.
        options: of the method, for example smaller sizes.

    Yields:
        An outcome per check and kind.

    Raises:
        InputError: if the method does not take these options.
    """
    check_options(method, options)
    for kind in kinds_of(method):
        case = Case(method, kind, options)
        for check in CHECKS:
            result = _outcome(case, check)
            yield result
            if check is CHECKS[0] and result.outcome == "broken":
                break


def _outcome(case: Case, check: Callable[[Case], None]) -> Checked:
    outcome, found = "holds", ""
    try:
        check(case)
    except DoesNotApply as why:
        outcome, found = "does not apply", str(why)
    except Broken as broken:
        outcome, found = "broken", str(broken)
    except Exception as error:  # of the method, which is what is looked for
        outcome, found = "broken", _told(error, inspect.getfile(case.method))
    return Checked(case.kind, check.__name__.replace("_", " "), inspect.getdoc(check) or "", outcome, found)


def _told(error: Exception, file: str) -> str:
    """An error in one line, with the innermost place in a file, or at all where it did not pass there."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = [*frames, *(f for f in frames if f.filename == file)][-1]
    return f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno}: {frame.line})"
