"""No code that a received file holds or names is run: canaries stay silent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import ostinato as package
from ostinato.errors import OstinatoError
from tests.cli.command import ostinato
from tests.conftest import photos

METHOD = '''"""A method that says when it is run."""
from pathlib import Path
Path({canary!r}).touch()
import ostinato
from ostinato.methods.simplecil import SimpleCIL
@ostinato.register("received")
class Received(SimpleCIL):
    """As nearest class means."""
'''


pytestmark = pytest.mark.usefixtures("untouched")


@pytest.fixture
def received(tmp_path) -> tuple[Path, Path]:
    """A run by a method in a file, finished, and what that file touches when it is run."""
    canary = tmp_path / "canary"
    (tmp_path / "method.py").write_text(METHOD.format(canary=str(canary)))
    photos(tmp_path / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    ostinato("run", "method.py", "data=photos", "stream.step=2", "out=r", cwd=tmp_path)
    assert canary.exists(), "the user named the file"
    canary.unlink()
    return tmp_path / "r", canary


PHOTO = "photos/c0/0.jpg"
COMMANDS = (
    ("predict", "r", PHOTO),
    ("predict", "r/artifact", PHOTO),
    ("eval", "r", "data=photos"),
    ("learn", "r", "data=photos"),
    ("analyse", "r"),
    ("protocols", "r"),
    ("resume", "r"),
    ("show", "r", "--json"),
    ("report", "r"),
)


def run_all(folder: Path) -> None:
    for command in COMMANDS:
        ostinato(*command, code=(0, 2, 3), cwd=folder)


def test_the_file_of_a_received_run_is_not_run(received):
    run, canary = received
    (run / "summary.json").unlink()
    run_all(run.parent)
    assert not canary.exists()
    with pytest.raises(OstinatoError, match="A file is run only if you name it"):
        package.load(str(run / "artifact"))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["r/method.py", "/{root}/method.py", "r.method", "../x.py:received", "r/artifact"])
def test_a_path_in_place_of_a_methods_name_is_not_run(received, name):
    """Written by hand into every file that names a method."""
    run, canary = received
    name = name.format(root=run.parent)
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace(f"{run.parent}/method.py:received", name))
    for file in [run / "record.json", *run.glob("artifact/*.json")]:
        about = json.loads(file.read_text())
        about |= {"method": name, "method_sha256": None} | ({"method_file": None} if "method_file" in about else {})
        file.write_text(json.dumps(about))
    run_all(run.parent)
    (run / "summary.json").unlink()
    run_all(run.parent)
    assert not canary.exists()


def test_a_tables_file_is_not_run(received):
    run, canary = received
    shutil.rmtree(run)
    table = run.parent / "table.toml"
    table.write_text(
        'title = "Received"\noptions = ["data=photos"]\n[[row]]\nname = "a"\nmethod = "method.py"\noptions = []\n'
    )
    for words in ((), ("--dry-run",), ("a",)):
        text = ostinato("reproduce", "table.toml", "out=t", *words, code=2, cwd=run.parent).stderr
        assert "Row a: the table names the file method.py" in text
        assert "add method=method.py" in text
    other = run.parent / "other.py"
    other.write_text("")
    ostinato("reproduce", "table.toml", "out=t", "method=other.py", code=2, cwd=run.parent)
    assert not canary.exists()
    ostinato("reproduce", "table.toml", "out=t", "method=method.py", cwd=run.parent)
    assert canary.exists(), "named by the user"
