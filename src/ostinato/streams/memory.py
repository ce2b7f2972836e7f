"""A memory budget shared by threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Budget:
    """Budget of memory in bytes, shared by all threads of a process."""

    def __init__(self, total: int):
        self.total = total
        self._begin()
        os.register_at_fork(after_in_child=self._begin)  # threads that hold bytes are not in the child

    def _begin(self) -> None:
        self._left = self.total
        self._changed = Condition()

    @contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Reserve bytes, at most the total, once they are free; a thread that holds some must not ask for more."""
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
