"""How the threads of a process wait for each other."""

from __future__ import annotations

import os

_ASKED = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep() -> None:
    """Let threads of OpenMP sleep while they wait, unless the environment says how they wait.

    By default they spin. On processors that are shared with other processes a spinning thread keeps the one that it
    waits for from running, which makes training ten times slower and more. Takes effect before torch is imported, and
    holds for the whole process and its children.
    """
    if not any(name in os.environ for name in _ASKED):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
