"""Ctrl-C and SIGTERM as a request to stop, which a run answers after the current step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Flag that is set by the first signal."""

    def __init__(self) -> None:
        self.asked = False


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a request; a second SIGINT interrupts at once.

    Signals cannot be caught outside the main thread; the request then stays unset.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signature of a handler
        request.asked = True
        signal.signal(signal.SIGINT, old[signal.SIGINT])

    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in old:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
