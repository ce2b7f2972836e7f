"""Progress of a run on the console: a bar with the time left, and a line per task."""

from __future__ import annotations

import os
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.text import Text

from ostinato.printing import closed, printable
from ostinato.report.tables import task_line

UNBOUNDED = 1_000_000
"""Line width without a terminal, so that nothing is wrapped or left out."""


class PlainConsole(Console):
    """Console that escapes control characters and raises an error when its output is closed.

    Without a terminal, lines are not wrapped and tables keep all columns, unless ``width`` or the environment variable
    ``COLUMNS`` is set.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        fixed = options.get("width") is not None or os.environ.get("COLUMNS", "").isdigit()
        if not (fixed or self.is_terminal or self.is_jupyter):
            self.width = UNBOUNDED

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, with control characters in texts escaped."""
        super().print(*(printable(value) if isinstance(value, str) else value for value in objects), **options)

    def on_broken_pipe(self) -> None:
        """Raise :class:`ostinato.printing.OutputClosedError`."""
        closed()


class Reporter:
    """Hooks of a run; this class shows nothing."""

    def message(self, text: str) -> None:
        """Show a message."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a piece of work of ``total`` units, of which ``done`` are done."""

    def advance(self, n: int, note: str = "") -> None:
        """Count ``n`` more units as done."""

    def task_done(self, row: dict[str, Any]) -> None:
        """Show the evaluation after a task."""

    def close(self) -> None:
        """End the report, also after an error."""


class ConsoleReporter(Reporter):
    """Reporter with a progress bar on a terminal and a line of progress now and then elsewhere, and a line per task.

    Args:
        console: to print on.
        every: seconds between lines of progress without a terminal.
    """

    def __init__(self, console: Console, every: float = 30.0) -> None:
        self.console, self.every = console, every
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.progress.start()
        self.current: TaskID | None = None
        self._said = time.monotonic()

    def message(self, text: str) -> None:
        """Print a message above the bar."""
        self.console.print(Text(printable(text)))

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Replace the bar by one for the next piece of work."""
        if self.current is not None:
            self.progress.remove_task(self.current)
        self.current = self.progress.add_task(what, total=total, completed=done, note="")

    def advance(self, n: int, note: str = "") -> None:
        """Advance the bar, or print a line if it is time for one."""
        if self.current is None:
            return
        self.progress.advance(self.current, n)
        if note:
            self.progress.update(self.current, note=note)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._said >= self.every:
            self._said = now
            self.message(_line(next(task for task in self.progress.tasks if task.id == self.current)))

    def task_done(self, row: dict[str, Any]) -> None:
        """Print the task's line."""
        self.message(task_line(row))

    def close(self) -> None:
        """Remove the bar."""
        self.progress.stop()


def _line(task: ProgressTask) -> str:
    """Progress of a piece of work in words: ``task 1/2: fit | 40 of 120 (33%) | 80 s left | loss 0.125``."""
    total = task.total or 0
    if task.completed > total:  # features: how often a method reads its samples is not known before
        return f"{task.description} | {task.completed:.0f}"
    share = task.completed / total if total else 1.0
    parts = [task.description, f"{task.completed:.0f} of {total:.0f} ({100 * share:.0f}%)"]
    if task.time_remaining is not None:
        parts.append(f"{task.time_remaining:.0f} s left")
    return " | ".join([*parts, *([task.fields["note"]] if task.fields["note"] else [])])
