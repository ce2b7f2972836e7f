"""Read-ahead by threads, and batches of items."""

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
"""Most reading threads; each holds one decoded image."""


def ahead(read: Callable[[A], B], items: Iterable[A], n: int) -> Iterator[B]:
    """Apply ``read`` to items in threads, at most ``n`` (at least 1) ahead; yield results and raise errors in order."""
    pool = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1))
    waiting: deque[Future[B]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also if the caller stops early
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[A], n: int) -> Iterator[list[A]]:
    """Yield items in lists of ``n``, the last one shorter."""
    rest = iter(items)
    while batch := list(islice(rest, n)):
        yield batch
