"""Feed targets many damaged inputs, in processes of their own; find exceptions that are not documented, and hangs."""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
import signal
import tempfile
import time
import traceback
import warnings
import zlib
from dataclasses import dataclass, field
from itertools import islice

import tests.faults as package
from tests.faults.fuzz import Target, accepts, mutated

SLOW = 10
"""Seconds after which an input counts as a hang."""


@dataclass
class Fed:
    """What came of one target's inputs.

    Attributes:
        name: of the target.
        inputs: how many it was fed.
        accepted: how many of them it read.
        seconds: that took.
        found: undocumented exceptions and hangs, each kind once, with the input.
    """

    name: str
    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    found: dict[str, str] = field(default_factory=dict)


def targets() -> dict[str, Target]:
    """All targets by name, of every ``targets_*.py``."""
    modules = [m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("targets_")]
    parts = [importlib.import_module(f"tests.faults.{name}").TARGETS for name in modules]
    return {target.name: target for part in parts for target in part}


def shares(inputs: int) -> dict[str, int]:
    """How many inputs each target gets: more of those that cost little, and less time for those that cost much."""
    weights = {name: target.cost**-1.5 for name, target in targets().items()}
    return {name: math.ceil(inputs * weight / sum(weights.values())) for name, weight in weights.items()}


def feed(name: str, inputs: int, seed: int, scratch: str) -> Fed:
    """Feed one target.

    Args:
        name: of the target.
        inputs: how many.
        seed: of the mutations.
        scratch: folder for the files of targets, which they keep as long as the process lives.
    """
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    target, fed = targets()[name], Fed(name)
    signal.signal(signal.SIGALRM, _too_slow)
    tempfile.tempdir = scratch
    seeds = target.seeds()
    draw = random.Random(seed ^ zlib.crc32(name.encode()))
    began = time.perf_counter()
    for data in islice(mutated(seeds, target.words, draw), inputs):
        signal.setitimer(signal.ITIMER_REAL, SLOW)
        try:
            fed.accepted += accepts(target, data)
        except BaseException as error:  # each is a finding
            where = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {where.filename}:{where.lineno}"
            fed.found.setdefault(kind, f"{error!s:.200} for {data[:300]!r}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        fed.inputs += 1
    fed.seconds = time.perf_counter() - began
    return fed


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"more than {SLOW} s")
