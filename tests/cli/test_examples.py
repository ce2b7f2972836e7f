"""The scripts in ``examples/`` run as they are."""

from __future__ import annotations

import re
import runpy
import sys
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import pytest
from tests.cli.command import ROOT, blocks, ostinato
from tests.conftest import SHARED, VIT_TI

EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.usefixtures("untouched")


def output(name: str, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Run a script as ``python examples/NAME.py WORDS`` does, and return its output."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / f"{name}.py"), *words])
    for imported in ("my_method", "drop_photo"):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    with redirect_stdout(StringIO()) as out:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    for imported in ("my_method", "drop_photo"):
        sys.modules.pop(imported, None)
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


FLOWERS = SHARED / "data" / "flowers12"

YEAR = [4, 5, 6, 7, 9, 9, 10, 11, 10, 11, 12, 12]
"""Classes that the model knows after each step; the eighth is taken back."""


@pytest.mark.slow
def test_year(monkeypatch, tmp_path):
    if not (FLOWERS.is_dir() and VIT_TI.is_file()):
        pytest.skip("the photos of flowers or the weights of a ViT are not beside this checkout (../shared)")
    needed = ("onnx", "onnxscript", "onnxruntime", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    if missing := [package for package in needed if find_spec(package) is None]:
        pytest.skip(f"the extras onnx and serve are not installed: {', '.join(missing)}")
    bounds = ("photos=15", "data.validation=0.4", "train.epochs=1", "method.n_random=64")
    encoder = ("backbone=vit_tiny_patch16_224.augreg_in21k_ft_in1k", f"backbone.weights={VIT_TI}")
    shown = output("year", monkeypatch, "duet", f"data={FLOWERS}", f"out={tmp_path / 'year'}", *encoder, *bounds)
    found = re.findall(r"^(\w+): .* (\d+) classes, ([\d.]+)% right", shown, flags=re.MULTILINE)
    assert [int(classes) for _, classes, _ in found] == YEAR
    months = [(name, float(right)) for name, _, right in found]
    assert [name for name, _ in months][6:9] == ["July", "August", "August"]
    assert months[8][1] == months[6][1] > months[7][1], "photos in wrong folders do harm until they are taken back"
    assert "100.0% of answers are those of the run" in shown
    assert "marguerite" not in ostinato("classes", tmp_path / "year/run").stdout
    if (page := re.search(r"^The page shows for (.+): (\S+) ([\d.]+) %, ", shown, flags=re.MULTILINE)) is None:
        assert "Chromium and chromedriver are not installed" in shown
    else:
        photo, name, sure = page.groups()
        assert f"{name} {sure}%" in ostinato("predict", tmp_path / "year/run", photo).stdout


def test_every_example_has_a_test_and_the_readmes_method_is_one():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"own_images", "own_method", "compare_methods", "my_method", "drop_photo", "year"}
    assert blocks("py") == [(EXAMPLES / "my_method.py").read_text(encoding="utf-8")]
