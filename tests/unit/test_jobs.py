"""Rows of a table in processes beside each other; a shell script stands for the command line."""

import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from ostinato.errors import Interrupted
from ostinato.reproduce import jobs
from ostinato.reproduce.jobs import run_jobs

SCRIPT = """#!/bin/sh
cd "$(dirname "$0")"
row=$4
touch "begun-$row"
case $row in
  broken) echo "some progress"; echo "error: no such flower"; echo "Try roses."; exit 2;;
  silent) exit 3;;
  one) i=0; while [ ! -e begun-two ]; do sleep 0.02; i=$((i + 1)); [ $i -lt 250 ] || exit 4; done;;
  two) i=0; while [ ! -e begun-one ]; do sleep 0.02; i=$((i + 1)); [ $i -lt 250 ] || exit 4; done;;
  long) trap 'touch saved; exit 130' TERM; while :; do sleep 0.02; done;;
esac
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A script in place of the interpreter, called as ``-m ostinato run ROW``."""
    script = tmp_path / "python"
    script.write_text(SCRIPT)
    script.chmod(0o755)
    monkeypatch.setattr(jobs.sys, "executable", str(script))
    return tmp_path


def plan(name, state="new"):
    return SimpleNamespace(
        row=SimpleNamespace(name=name),
        command=f"ostinato run {name} out=x",
        state=state,
        run=SimpleNamespace(root=name),
    )


def run(folder, names, n, said=None):
    ended = []
    failed = run_jobs(
        [plan(name) for name in names], n, folder / "logs", (said if said is not None else []).append,
        lambda: ended.append(True),
    )  # fmt: skip
    return failed, len(ended)


def test_rows_run_at_the_same_time(command):
    assert run(command, ["one", "two", "three"], 2) == ({}, 3)  # either of the first two waits for the other


def test_failed_rows_are_reported_and_the_others_run(command):
    said = []
    failed, ended = run(command, ["broken", "silent", "three"], 2, said)
    assert failed == {"broken": "no such flower\nTry roses.", "silent": f"exit code 3, see {command}/logs/silent.txt"}
    assert ended == 3
    assert "broken: ostinato run broken out=x" in said
    assert (command / "begun-three").exists()


def test_a_begun_row_is_resumed(command, monkeypatch):
    seen = []
    monkeypatch.setattr(jobs, "resume_words", lambda plan: ["device=cpu"])
    monkeypatch.setattr(
        jobs.subprocess, "Popen", lambda words, **_: seen.append(words) or SimpleNamespace(poll=lambda: 0, returncode=0)
    )
    run_jobs([plan("one", "begun")], 2, command / "logs", print, lambda: None)
    assert seen == [[sys.executable, "-m", "ostinato", "resume", "one", "device=cpu"]]


def test_a_signal_stops_all_rows_and_begins_no_other(command):
    def ask():
        while not (command / "begun-long").exists():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted, match="Repeat the command"):
        run(command, ["long", "three"], 1)
    assert (command / "saved").exists()
    assert not (command / "begun-three").exists()
