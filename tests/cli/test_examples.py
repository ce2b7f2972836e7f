"""The scripts in ``examples/`` run as they are."""

from __future__ import annotations

import re
import runpy
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from tests.cli.command import ROOT, blocks

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.usefixtures("untouched")


def output(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run a script as ``python examples/NAME.py WORDS`` does, and return its output."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / f"{name}.py"), *words])
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    with redirect_stdout(StringIO()) as out:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    sys.modules.pop("my_method", None)
    return out.getvalue()


def test_own_images(monkeypatch):
    shown = output("own_images", monkeypatch)
    assert "all 2 tasks" in shown
    answers = [line.split() for line in shown.splitlines() if ".png" in line]
    assert len(answers) == 10
    right = [Path(source).parent.name == best for source, best, _ in answers]
    assert sum(right) >= 8


def test_own_method(monkeypatch):
    shown = output("own_method", monkeypatch)
    assert "all 2 tasks" in shown
    assert "one_prefix {'layers': (0, 1, 2), 'length': 3}" in shown


def test_compare_methods(monkeypatch):
    shown = output("compare_methods", monkeypatch)
    found = dict(re.findall(r"^(\w+) +([\d.]+)%", shown, flags=re.MULTILINE))
    assert set(found) == {"simplecil", "dualprompt"}
    assert float(found["simplecil"]) > 70


def test_every_example_has_a_test_and_the_readmes_method_is_one():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_images", "own_method", "compare_methods", "my_method", "drop_photo"}
    assert blocks("py") == [(EXAMPLES / "my_method.py").read_text(encoding="utf-8")]
