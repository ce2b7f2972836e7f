"""A number of bytes that threads share: whoever needs more than is left waits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Budget:
    """Bytes of memory that may be in use at a time, by all threads of a process together."""

    def __init__(self, total: int):
        """Begin with nothing in use.

        Args:
            total: bytes.
        """
        self.total = total
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads that hold bytes are not in the child

    def _begin(self) -> None:
        self._left = self.total
        self._changed = Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Hold some of the bytes; a thread that holds some must not ask for more.

        Args:
            size: bytes; whoever needs more than the total gets all.

        Yields:
            When they are free.
        """
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= size)
            self._left -= size
        try:
            yield
        finally:
            with self._changed:
                self._left += size
                self._changed.notify_all()
