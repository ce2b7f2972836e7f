"""The demonstration removes what it made, and nothing else."""

from __future__ import annotations

import json

import pytest
import tomli_w

from ostinato import demo
from ostinato.errors import InputError
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.files import write_json
from ostinato.report.console import Reporter
from ostinato.runs.rundir import RunDir


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Runs that only write their configuration and a matrix."""

    def start(config, out, reporter):
        dirs = RunDir(out)
        out.mkdir(parents=True)
        dirs.config.write_text(tomli_w.dumps(config.to_dict()))
        AccuracyMatrix([[1]], [2]).to_csv(dirs.matrix)
        return {}

    monkeypatch.setattr(demo, "start", start)


def files(root):
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_a_directory_that_holds_a_demo_is_not_the_demos(tmp_path):
    """The default demonstration lies in runs/demo; --out runs must not remove the runs."""
    runs = tmp_path / "runs"
    demo.run_demo(runs / "demo", Reporter())
    (runs / "photos").mkdir()
    (runs / "photos/precious").write_text("x")
    before = files(runs)
    with pytest.raises(InputError, match="was not made by the demo"):
        demo.run_demo(runs, Reporter())
    assert files(runs) == before


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"made_by": "me"}', "\x00"])
def test_a_mark_counts_by_its_content(tmp_path, content):
    (tmp_path / demo.MARK).write_text(content)
    (tmp_path / "precious").write_text("x")
    with pytest.raises(InputError, match="was not made by the demo"):
        demo.run_demo(tmp_path, Reporter())
    assert (tmp_path / "precious").exists()


def test_a_second_demonstration_replaces_its_own_runs_alone(tmp_path):
    out = tmp_path / "demo"
    demo.run_demo(out, Reporter())
    (out / "notes.txt").write_text("mine")
    (out / "finetune/stale").write_text("x")
    demo.run_demo(out, Reporter())
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "finetune/stale").exists()
    assert json.loads((out / demo.MARK).read_text())["made_by"]


def test_a_demonstration_that_was_killed_while_it_made_a_run_begins_anew(tmp_path):
    (tmp_path / "demo/finetune").mkdir(parents=True)
    write_json(tmp_path / "demo" / demo.MARK, {"made_by": "ostinato demo"})
    (tmp_path / "demo/finetune/.lock").touch()
    demo.run_demo(tmp_path / "demo", Reporter())
    assert (tmp_path / "demo/finetune/config.toml").exists()


@pytest.mark.parametrize("kind", ["another run", "a folder", "a link"])
def test_what_only_has_the_name_of_a_demos_run_stays(tmp_path, kind):
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    demo.run_demo(out, Reporter())
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    if kind == "another run":
        text = (out / "ranpac/config.toml").read_text()
        (out / "ranpac/config.toml").write_text(text.replace("seed = 0", "seed = 1"))
    else:
        (out / "ranpac").rename(out / "moved")
        if kind == "a link":
            (out / "ranpac").symlink_to(elsewhere)
        else:
            (out / "ranpac").mkdir()
            (out / "ranpac/precious").write_text("x")
    before = files(tmp_path)
    with pytest.raises(InputError, match=r"is no run of the demo\. Move it away"):
        demo.run_demo(out, Reporter())
    assert files(tmp_path) == before
