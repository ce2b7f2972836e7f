"""Wait policy of OpenMP threads."""

from __future__ import annotations

import os

_ASKED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> None:
    """Let OpenMP threads sleep while they wait, unless the environment sets their wait policy.

    By default they spin. On a processor that is shared with other processes, a spinning thread blocks the one it waits
    for, which makes training ten times slower or more. Call it before torch is imported; it holds for the process and
    its children.
    """
    if not any(name in os.environ for name in _ASKED):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
