"""Commands in processes of their own that need not import torch first: a warm process forks each of them.

The processes are real: they hold locks, get signals, and are killed. Tests of the start-up itself take ``process``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.cli.command import ENV, ROOT


class Forked:
    """A command that runs, with the members of a Popen that tests use; stdout and stderr are texts at its end.

    Args:
        server: forks the command and waits for it.
        words: of the command.
        cwd: where it runs.
        env: variables beside those of the server.
    """

    def __init__(self, server: Server, words: list[str], cwd: Path, env: dict[str, str]) -> None:
        self.server, self.returncode = server, None
        self.folder = tempfile.TemporaryDirectory()
        files = [str(Path(self.folder.name) / name) for name in ("out", "err")]
        self.pid = server.ask({"words": words, "cwd": str(cwd), "files": files, "env": env})

    def poll(self) -> int | None:
        """Exit code, or None while it runs; minus the signal that ended it."""
        if self.returncode is None:
            self.returncode = self.server.ask({"ended": self.pid})
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 240.0) -> tuple[str, str]:
        """Wait for its end: what it wrote to stdout and to stderr."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"{self.pid} did not end in {timeout} seconds")
            time.sleep(0.01)
        out, err = ((Path(self.folder.name) / name).read_text(encoding="utf-8") for name in ("out", "err"))
        self.folder.cleanup()
        return out, err


class Server:
    """A process that has imported all that commands use, and forks."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.forking"],
            env=ENV, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def ask(self, question: dict[str, Any]) -> Any:
        """Send a line and return the answer."""
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __call__(self, *words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Forked:
        """Begin a command."""
        return Forked(self, list(map(str, words)), cwd, env or {})

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve() -> None:
    """Answer the lines of stdin until it is closed."""
    from tests.faults.kills import warm_up

    warm_up()
    for line in sys.stdin:
        question = json.loads(line)
        if "ended" in question:
            pid, status = os.waitpid(question["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            run(question)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def run(question: dict[str, Any]) -> None:
    """Be the command: run it and end."""
    from ostinato.cli import main

    code = 99
    try:
        os.chdir(question["cwd"])
        os.environ.update(question["env"])
        for number, file in enumerate([os.devnull, *question["files"]]):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
        try:
            main(question["words"])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    serve()
