"""The public names of the package, its version, and what an installed copy carries."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

import pytest

import ostinato
from ostinato.lookup import methods

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ostinato.__all__)
def test_every_public_name_is_there(name):
    assert getattr(ostinato, name) is not None
    assert name in dir(ostinato)


def test_type_checkers_see_every_public_name():
    """They read the imports under TYPE_CHECKING, not the table of names."""
    tree = ast.parse((ROOT / "src/ostinato/__init__.py").read_text())
    seen = {"__version__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ostinato"):
            seen |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            seen.add(node.name)
    assert set(ostinato.__all__) <= seen


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'lerner'"):
        _ = ostinato.lerner


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ostinato.__version__ == project["version"]


def test_the_methods_are_listed_also_once_their_package_is_imported():
    code = "import ostinato.methods.base, ostinato; print(*ostinato.list_methods())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(methods())


def test_a_wheel_says_that_it_has_types_and_brings_what_it_needs(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.iterdir()
    with ZipFile(wheel) as file:
        names = set(file.namelist())
        (about,) = [file.read(name).decode() for name in names if name.endswith("/METADATA")]
    assert {"ostinato/py.typed", "ostinato/assets/vit_mini_patch8_32.glyphs.safetensors"} <= names
    assert "Classifier: Typing :: Typed" in about
    assert not [name for name in names if name.startswith(("tests", "docs", "examples"))]


def test_the_citation_and_the_changelog_name_the_version():
    assert f"version: {ostinato.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {ostinato.__version__} " in (ROOT / "CHANGELOG.md").read_text()
