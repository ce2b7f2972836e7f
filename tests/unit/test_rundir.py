"""Run directories: made whole, held by one process, described by records that are checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from tests.conftest import RECORD

from ostinato.config import build_config
from ostinato.errors import DataError, InputError
from ostinato.locking import locked
from ostinato.runs.rundir import RunDir

CONFIG = build_config({"method": {"name": "l2p", "top_k": 3}, "seed": 4})


def test_a_run_directory_keeps_its_configuration_and_record(tmp_path):
    dirs = RunDir(tmp_path / "a" / "run")
    with dirs.held():
        dirs.create(CONFIG, RECORD, b"text")
    again = RunDir(tmp_path / "a" / "run")
    assert again.read_config() == CONFIG
    assert again.read_record().model_dump().items() >= RECORD.items()
    assert again.method.read_bytes() == b"text"
    with dirs.held(), pytest.raises(InputError, match="is not empty; continue it with 'ostinato resume"):
        dirs.create(CONFIG, RECORD, None)


def test_only_empty_places_become_run_directories(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(InputError, match="is not empty; choose another name"):
        RunDir(other).create(CONFIG, RECORD, None)
    with pytest.raises(InputError, match="exists"):
        RunDir(other / "file").create(CONFIG, RECORD, None)
    with pytest.raises(InputError, match=r"is no run directory: it has no config\.toml"):
        RunDir(other).read_config()


def test_what_a_killed_creation_left_is_nothing(tmp_path):
    """config.toml is written last."""
    dirs = RunDir(tmp_path)
    with dirs.held():
        dirs.create(CONFIG, RECORD, b"text")
    dirs.config.rename(tmp_path / "config.toml.part")
    (tmp_path / ".lock.json").touch()
    with pytest.raises(InputError, match="its run was stopped before it began; start it again"):
        dirs.read_config()
    dirs.check_free()
    with dirs.held():
        dirs.create(CONFIG, RECORD, None)
    assert dirs.read_config() == CONFIG


def test_events_after_a_checkpoint_are_dropped(tmp_path):
    dirs = RunDir(tmp_path)
    assert dirs.events_size() == 0
    dirs.truncate_events(0)
    dirs.append_event({"step": 1, "name": "é"})
    size = dirs.events_size()
    dirs.append_event({"step": 2})
    dirs.truncate_events(size)
    dirs.truncate_events(size + 100)
    assert [json.loads(line) for line in dirs.events.read_text().splitlines()] == [{"step": 1, "name": "é"}]


@pytest.mark.parametrize("change", ["missing", "bit", "older", "newer", "edited"])
def test_a_record_that_is_not_what_was_written_is_refused(tmp_path, change):
    dirs = RunDir(tmp_path)
    dirs.write_record(RECORD)
    text = dirs.record.read_text()
    if change == "missing":
        dirs.record.unlink()
    else:
        old, new = {
            "bit": ('"threads": 1', '"threads": 3'),
            "older": ('  "format": 1,\n', ""),
            "newer": ('"format": 1', '"format": 2'),
            "edited": ('"now"', '"then"'),
        }[change]
        assert old in text
        dirs.record.write_text(text.replace(old, new))
    says = {
        "missing": "cannot be read",
        "older": "must have format [0-9], got none, of an earlier",
        "newer": "Install a newer",
    }
    with pytest.raises(DataError, match=says.get(change, "is damaged or was edited")):
        dirs.read_record()


@pytest.mark.parametrize(
    "name", ["events.jsonl", "checkpoints", "plots", "artifact", "summary.json", "learn-001/plots"]
)
@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_a_link_or_a_pipe_in_a_run_is_not_written_through(tmp_path, name, kind):
    dirs = RunDir(tmp_path / "run")
    with dirs.held():
        dirs.create(CONFIG, RECORD, None)
    place, victim = dirs.root / name, tmp_path / "victim"
    place.parent.mkdir(exist_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        victim.mkdir() if kind == "folder" else victim.touch()
        place.symlink_to(victim)
    with pytest.raises(DataError, match="of the run itself"), dirs.held():
        pass


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "config.toml")
    with pytest.raises(InputError, match="is no run directory"):
        RunDir(tmp_path).read_config()


HOLD = """
import sys, time
from pathlib import Path
from ostinato.locking import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_its_lock_goes_with_it(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"is in use by process {other.pid} on ") as caught, locked(tmp_path):
            pass
        assert os.uname().nodename in str(caught.value)
    finally:
        other.kill()
        other.communicate()
    assert (tmp_path / ".lock.json").exists(), "killed"
    with locked(tmp_path):
        pass
    assert not (tmp_path / ".lock.json").exists()
