"""Rows of a table as processes beside each other."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ostinato.errors import Interrupted
from ostinato.reproduce.plan import Plan, resume_words
from ostinato.runs.stopping import stop_on_signal

_PAUSE = 0.1
"""Seconds between looks at the processes."""

_SHOWN = 20
"""Lines of a failed row's output that the error shows."""


@dataclass(frozen=True)
class _Job:
    """A row that runs.

    Attributes:
        plan: plan of the row.
        process: its process.
        log: file with the output of the process.
    """

    plan: Plan
    process: subprocess.Popen[bytes]
    log: Path


def run_jobs(
    plans: Sequence[Plan], jobs: int, logs: Path, tell: Callable[[str], None], ended: Callable[[], None]
) -> dict[str, str]:
    """Run unfinished rows, each in a process, several at a time.

    Args:
        plans: rows to run.
        jobs: processes at a time.
        logs: folder of the rows' output.
        tell: receives the command of each row as it starts, and its error.
        ended: called after each row.

    Returns:
        Error messages of failed rows.

    Raises:
        Interrupted: if a signal stopped the rows; the same command resumes them.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, failed = list(plans), list[_Job](), dict[str, str]()
    with stop_on_signal() as stop:
        try:
            while running or (waiting and not stop.asked):
                while waiting and len(running) < jobs and not stop.asked:
                    running.append(_started(waiting.pop(0), logs, tell))
                if stop.asked:
                    _ask_to_stop(running)
                    break
                time.sleep(_PAUSE)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode != 0:
                        name = job.plan.row.name
                        failed[name] = _error(job)
                        tell(f"{name}: {failed[name]}")
                    ended()
        finally:  # also after a second Ctrl-C: no process outlives the command
            for job in running:
                job.process.kill()
                job.process.wait()
    if stop.asked:
        raise Interrupted("Stopped. Rows that had begun are saved. Repeat the command.")
    return failed


def _started(plan: Plan, logs: Path, tell: Callable[[str], None]) -> _Job:
    words = shlex.split(plan.command)[1:]
    if plan.state == "begun":
        words = ["resume", str(plan.run.root), *resume_words(plan)]
    tell(f"{plan.row.name}: {plan.command}")
    log = logs / f"{plan.row.name}.txt"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "ostinato", *words], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    return _Job(plan, process, log)


def _ask_to_stop(running: Sequence[_Job]) -> None:
    """Let all rows save their state and end; Ctrl-C on a terminal has reached them already."""
    for job in running:
        if job.process.poll() is None:
            job.process.send_signal(signal.SIGTERM)
    for job in running:
        job.process.wait()


def _error(job: _Job) -> str:
    """The error that a row printed, or the end of its output."""
    lines = job.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[starts[-1] :] if starts else lines[-_SHOWN:]
    return "\n".join(said).removeprefix("error: ") or f"exit code {job.process.returncode}, see {job.log}"
