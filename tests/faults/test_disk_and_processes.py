"""A disk that is full, and two processes that want one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import ostinato
from tests.cli.forking import Forked
from tests.conftest import photos
from tests.faults.kills import differences, result_of

SHORT = ("train.epochs=1", "train.batch_size=4", "checkpoint.every=1", "precision=fp32", "device=cpu")
WORDS = ("dualprompt", "data=photos", "stream.step=2", *SHORT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Data, and a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    photos(root / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    ostinato("run", *WORDS, "out=r", cwd=root)
    return root


@pytest.fixture
def small(tmp_path) -> Iterator[Path]:
    """A file system of its own, whose size can be set."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system can be mounted by root alone, and not in every container")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def resize(folder: Path, kilobytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", folder], check=True)


@pytest.mark.parametrize("kilobytes", [0, 8, 40, 120, 200])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(whole, small, kilobytes):
    (small / "photos").symlink_to(whole / "photos")
    (small / "filler").write_bytes(b"0" * 2**16)
    resize(small, 64 + 4 + kilobytes)
    text = ostinato("run", *WORDS, "out=r", code=3, cwd=small).stderr
    assert "No space left on device." in text
    resize(small, 64 * 1024)
    begun = (small / "r/config.toml").exists()
    ostinato(*(("resume", "r") if begun else ("run", *WORDS, "out=r")), cwd=small)
    assert differences(small / "r", result_of(whole / "r")) == []


def wait_for(file: Path, lines: int, victim: Forked) -> None:
    end = time.monotonic() + 120
    while not file.exists() or file.read_text().count("\n") < lines:
        assert victim.poll() is None, "ended too early"
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_run_in_progress_is_left_alone(forked, whole):
    long = [w for w in WORDS if "epochs" not in w]
    victim = forked("run", *long, "train.epochs=500", "out=busy", cwd=whole)
    try:
        wait_for(whole / "busy/events.jsonl", 5, victim)
        for words in (("resume", "busy"), ("learn", "busy", "data=photos")):
            text = ostinato(*words, code=2, cwd=whole).stderr
            assert f"busy is in use by process {victim.pid} on" in text
        assert "is not empty" in ostinato("run", *WORDS, "out=busy", code=2, cwd=whole).stderr
    finally:
        victim.send_signal(signal.SIGKILL)
        victim.communicate()


def test_of_two_that_resume_one_run_one_does(forked, whole, tmp_path):
    """Both end with one result, whoever comes first."""
    (tmp_path / "photos").symlink_to(whole / "photos")
    shutil.copytree(whole / "r", tmp_path / "r")
    (tmp_path / "r/summary.json").unlink()
    shutil.rmtree(tmp_path / "r/artifact")
    two = [forked("resume", "r", cwd=tmp_path) for _ in range(2)]
    said = [one.communicate()[1] for one in two]
    codes = sorted(one.returncode for one in two)
    assert codes in ([0, 2], [0, 0]), said  # the second may come when the first is done
    if codes == [0, 2]:
        assert any("is in use by process" in text for text in said)
    assert differences(tmp_path / "r", result_of(whole / "r")) == []
    assert json.loads((tmp_path / "r/summary.json").read_text())["classes"] == 4
    assert os.listdir(tmp_path / "r").count(".lock.json") == 0
