"""Read ahead: threads do what is asked of items while earlier results are used."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

THREADS = 4
"""Most threads that read; each holds one decoded image."""


def ahead(read: Callable[[A], B], items: Iterable[A], n: int) -> Iterator[B]:
    """What ``read`` makes of items, in their order.

    Args:
        read: called by threads; its errors are raised here, in the order of the items.
        items: taken one by one, ``n`` at most before their results are asked for.
        n: at least 1.
    """
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where nobody asks for the rest
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[A], n: int) -> Iterator[list[A]]:
    """Items in lists of ``n``, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, n)):
        yield some
