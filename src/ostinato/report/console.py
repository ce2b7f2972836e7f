"""What a person sees while a run goes on: a bar with the time left, and a line per task."""

from __future__ import annotations

import os
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from ostinato.printing import closed, printable
from ostinato.report.tables import task_line

UNBOUNDED = 1_000_000
"""Characters of a line where there is no terminal, so that nothing is wrapped or left out."""


class PlainConsole(Console):
    """A console that obeys nothing in names, and says when its reader went away.

    Without a terminal, lines are as long as they are: a log holds whole lines, and tables all columns. A ``width`` or
    the environment's ``COLUMNS`` goes before.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        chosen = options.get("width") is not None or os.environ.get("COLUMNS", "").isdigit()
        if not (chosen or self.is_terminal or self.is_jupyter):
            self.width = UNBOUNDED

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as a console does, with control characters in texts written out."""
        super().print(*(printable(one) if isinstance(one, str) else one for one in objects), **options)

    def on_broken_pipe(self) -> None:
        """Stop, with a message.

        Raises:
            OutputClosedError: always.
        """
        closed()


class Reporter:
    """Hooks of a run; this one shows nothing."""

    def message(self, text: str) -> None:
        """Something worth knowing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A piece of work of ``total`` units begins, ``done`` of them done."""

    def advance(self, n: int, note: str = "") -> None:
        """``n`` units of the current piece are done."""

    def task_done(self, row: dict[str, Any]) -> None:
        """A task was learned and evaluated."""

    def close(self) -> None:
        """The run is over, for whatever reason."""


class ConsoleReporter(Reporter):
    """Progress bars on a terminal; lines per task everywhere.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
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

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(Text(printable(text)))

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Replace the bar by that of the next piece of work."""
        if self.current is not None:
            self.progress.remove_task(self.current)
        self.current = self.progress.add_task(what, total=total, completed=done, note="")

    def advance(self, n: int, note: str = "") -> None:
        """Move the bar."""
        if self.current is not None:
            self.progress.advance(self.current, n)
            if note:
                self.progress.update(self.current, note=note)

    def task_done(self, row: dict[str, Any]) -> None:
        """Print the task's line."""
        self.message(task_line(row))

    def close(self) -> None:
        """Take the bar away."""
        self.progress.stop()
