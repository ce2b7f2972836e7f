"""A sample of the kills of ``make faults``, in a process that forks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.command import ENV, ROOT

pytestmark = pytest.mark.slow


def test_killed_commands_go_on_to_the_same_result():
    words = [sys.executable, "-m", "tests.faults.kills", "6", "7"]
    done = subprocess.run(words, env=ENV, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["kills"] >= 6
    assert {"run", "learn"} <= set(found["by_command"])


WITH_MEMORY_OR_PARTS = (
    "aligned", "ewc", "lwf", "er", "icarl", "bic", "der", "gdumb", "s_prompt", "inflora", "sd_lora", "ease", "aper",
    "slca", "hide_prompt",
)  # fmt: skip


def test_a_killed_run_of_each_competitor_goes_on_to_the_same_result():
    """Among them, methods that keep samples, copies of the encoder, subspaces or class statistics."""
    words = [sys.executable, "-m", "tests.faults.kills", "0", "7", *WITH_MEMORY_OR_PARTS]
    done = subprocess.run(words, env=ENV, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["by_command"]["run"] == len(WITH_MEMORY_OR_PARTS)
    assert found["by_command"]["resume"] > 0
