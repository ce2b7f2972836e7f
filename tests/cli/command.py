"""The command line in this process, or in one of its own, and the code blocks of pages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ostinato.cli import main

ENV = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "HF_HUB_OFFLINE": "1"}


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


def ostinato(*words: str | Path, code: int | tuple[int, ...] = 0, cwd: Path | None = None) -> Done:
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err), chdir(cwd or "."):
        try:
            main([str(word) for word in words])
            got = 0
        except SystemExit as stop:
            got = stop.code or 0
    done = Done(out.getvalue(), err.getvalue())
    assert got in (code if isinstance(code, tuple) else (code,)), f"exit {got}\n{done.stdout}\n{done.stderr}"
    return done


def process(*words: str | Path, cwd: Path, **more) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ostinato", *map(str, words)],
        env=ENV,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        **more,
    )


ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


def blocks(language: str, page: Path = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
