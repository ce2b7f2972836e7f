"""Runs on several processes: the same results as on one, written once, and resumable with another number."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.cli.command import ENV, ostinato
from tests.cli.forking import Server

from ostinato.distributed import ProcessGroup, process_group
from ostinato.errors import InputError
from ostinato.evaluation.answers import read_answers

pytestmark = pytest.mark.slow

OPTIONS = (
    "data=digits", "data.limit_per_class=12", "data.test_limit_per_class=12", "stream.first=4", "stream.step=3",
    "train.epochs=1", "train.batch_size=8", "precision=fp32",
)  # fmt: skip


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(n: int, *words: str | Path) -> subprocess.Popen[str]:
    """A command on ``n`` processes, as torchrun starts them."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(n), "--master-port", free_port()]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "ostinato", *map(str, words)],
        env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def forked_together(forked: Server, n: int, *words: str | Path, cwd: Path) -> str:
    """What ``n`` processes print that are forked with the variables that torchrun sets."""
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(n)}
    parts = [forked(*words, cwd=cwd, env=env | {"RANK": str(i), "LOCAL_RANK": str(i)}) for i in range(n)]
    printed = ["".join(part.communicate()) for part in parts]
    assert [part.returncode for part in parts] == [0] * n, printed
    return "".join(printed)


@pytest.mark.parametrize("method", ["dualprompt", "cl_lora", "lieprompt"])
def test_two_processes_give_the_matrix_of_one(method: str, forked: Server, tmp_path: Path):
    ostinato("run", method, *OPTIONS, f"out={tmp_path / 'one'}")
    text = forked_together(forked, 2, "run", method, *OPTIONS, f"out={tmp_path / 'two'}", cwd=tmp_path)
    one, two = ((tmp_path / run / "accuracy_matrix.csv").read_text() for run in ("one", "two"))
    assert one == two
    first, second = (read_answers(tmp_path / run / "answers.npz") for run in ("one", "two"))
    assert first.samples.tolist() == second.samples.tolist()
    assert first.right.sum() == second.right.sum()
    events = [(tmp_path / run / "events.jsonl").read_text().splitlines() for run in ("one", "two")]
    assert len(events[0]) == len(events[1]), "every step is logged once"
    losses = [[json.loads(line).get("loss") for line in lines] for lines in events]
    for a, b in zip(*losses, strict=True):
        assert a == b or abs(a - b) < 0.01 + 0.02 * abs(a), "both see the loss over the whole batch"
    assert text.count("task 3 of 3") == 1, "one process speaks"
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["processes"] == 2


def test_a_run_of_torchrun_stops_together_and_goes_on_with_another_number(tmp_path: Path):
    longer = {"data.limit_per_class=12": "data.limit_per_class=24", "train.epochs=1": "train.epochs=3"}
    words = ("run", "dualprompt", *(longer.get(word, word) for word in OPTIONS))
    ostinato(*words, f"out={tmp_path / 'whole'}")
    cut = launched(2, *words, f"out={tmp_path / 'cut'}")
    events = tmp_path / "cut" / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (events.exists() and events.read_text().count('"step"') >= 4):
        time.sleep(0.05)
    cut.send_signal(signal.SIGTERM)
    cut.communicate(timeout=120)
    assert not (tmp_path / "cut" / "summary.json").exists(), "it was stopped before its end"
    assert json.loads((tmp_path / "cut" / "record.json").read_text())["processes"] == 2
    assert any((tmp_path / "cut" / "checkpoints").iterdir())
    ostinato("resume", tmp_path / "cut")
    whole, cut_ = ((tmp_path / run / "accuracy_matrix.csv").read_text() for run in ("whole", "cut"))
    assert whole == cut_


def test_a_numbered_gpu_cannot_be_shared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="cuda:0 would be shared by 2 processes"), process_group("cuda:0"):
        pass


def test_shares_cover_everything_once():
    for n in (0, 1, 5, 8):
        parts = [ProcessGroup(rank, 3).shard(range(n)) for rank in range(3)]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_exchanged():
    alone, rows = ProcessGroup(), torch.ones(2, 3)
    assert alone.all_gather(rows) is rows
    assert alone.any(True, torch.device("cpu"))
    assert alone.broadcast_object("x") == "x"
    alone.all_reduce([rows])
    assert rows.sum() == 6
