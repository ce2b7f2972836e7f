"""Checkpoints: whole or not at all, refused when damaged, and cheap for what never changes."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from ostinato.errors import DataError
from ostinato.files import write_new
from ostinato.runs.checkpoint import Checkpoint, Checkpoints
from ostinato.runs.session import Progress

RUN = "0" * 32


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def checkpoint(i):
    return Checkpoint({"w": torch.full((2,), float(i))}, {"0.step": torch.tensor(float(i))}, {"step": i})


def test_a_checkpoint_reads_back_as_written(tmp_path):
    store = Checkpoints(tmp_path / "a" / "checkpoints", RUN)
    shared = draw(3, 4)
    learned = {
        "x": shared, "view": shared.T, "half": shared.bfloat16(), "long": torch.arange(3), "none": torch.zeros(0, 5),
        "trained": nn.Parameter(shared),
    }  # fmt: skip
    store.save(Checkpoint(learned, {}, {"phase": "inside", "step": 3}))
    got = store.latest()
    assert got.learned.keys() == learned.keys()
    for key, value in learned.items():
        assert torch.equal(got.learned[key], value), key
        assert got.learned[key].dtype == value.dtype
    assert got.optimizer == {}
    assert got.progress == asdict(Progress(phase="inside", step=3))


def test_none_without_checkpoints(tmp_path):
    assert Checkpoints(tmp_path / "missing", RUN).latest() is None
    assert Checkpoints(tmp_path, RUN).latest() is None


def test_the_newest_two_are_kept(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    for i in range(5):
        path = store.save(checkpoint(i))
        assert path.is_dir()
        assert store.latest().progress["step"] == i
        assert len(list(tmp_path.iterdir())) == min(i + 1, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000003", "000004"]


def test_an_unfinished_checkpoint_is_ignored_and_replaced(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    store.save(checkpoint(1))
    draft = tmp_path / "unfinished"
    draft.mkdir()
    (draft / "learned-000001.safetensors").write_bytes(b"half")
    (draft / "stray").write_text("x")
    assert store.latest().progress["step"] == 1
    path = store.save(checkpoint(2))
    assert not draft.exists()
    assert sorted(p.name for p in path.iterdir()) == [
        "checkpoint.json", "learned-000001.safetensors", "optimizer.safetensors",
    ]  # fmt: skip
    assert store.latest().progress["step"] == 2


@pytest.mark.parametrize("moment", ["learned", "optimizer", "progress"])
def test_a_failure_while_writing_leaves_the_older_ones(tmp_path, monkeypatch, moment):
    store = Checkpoints(tmp_path, RUN)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    bad = checkpoint(3)
    if moment == "progress":
        bad = replace(bad, progress={"no": object()})
    else:
        import ostinato.tensor_files as module

        def fail(path, *parts):
            if path.stem.startswith(moment):
                path.write_bytes(parts[0][:4])
                raise OSError("disk full")
            return write_new(path, *parts)

        monkeypatch.setattr(module, "write_new", fail)
    with pytest.raises((OSError, TypeError)):
        store.save(bad)
    assert store.latest().progress["step"] == 2
    assert {"000000", "000001"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("file", ["checkpoint.json", "learned-000001.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "missing"])
def test_a_damaged_newest_falls_back_to_the_older(tmp_path, file, damage):
    store = Checkpoints(tmp_path, RUN)
    store.save(checkpoint(1))
    path = store.save(checkpoint(2)) / file
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-3])
    got = store.latest()
    assert got.progress["step"] == 1
    assert got.learned["w"].tolist() == [1, 1]
    assert len(store.damaged) == 1
    assert str(path) in store.damaged[0]
    assert store.save(checkpoint(3)).name == "000002", "numbers go on"
    assert store.latest().progress["step"] == 3


def test_what_never_changes_is_written_once(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    old, inplace, replaced = draw(1000), draw(3), draw(4)
    holder = nn.ParameterList([old, inplace])

    def save(step):
        return store.save(Checkpoint(holder.state_dict() | {"replaced": replaced}, {}, {"step": step}))

    first = save(0)
    (written,) = first.glob("learned-*")
    inode = written.stat().st_ino
    sizes = []
    for step in range(1, 5):
        with torch.no_grad():
            holder[1].mul_(2)
        replaced = replaced + 1
        path = save(step)
        assert (path / written.name).stat().st_ino == inode, "linked, not copied"
        (fresh,) = set(path.glob("learned-*")) - {path / written.name}
        sizes.append(fresh.stat().st_size)
        got = store.latest()
        for key, value in (holder.state_dict() | {"replaced": replaced}).items():
            assert torch.equal(got.learned[key], value), (step, key)
    assert max(sizes) < 1000, "only what changed"
    with torch.no_grad():
        holder[0].add_(1)
    path = save(5)
    assert not (path / written.name).exists(), "nothing needs the first file any more"
    assert torch.equal(Checkpoints(tmp_path, RUN).latest().learned["0"], holder[0])


def test_a_new_tensor_at_the_address_of_an_old_one_is_written(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    for value in range(20):
        store.save(Checkpoint({"x": torch.full((1000,), float(value))}, {}, {"step": value}))
        assert store.latest().learned["x"][0] == value


def test_when_none_can_be_read_all_are_named(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    for i in (1, 2):
        (store.save(checkpoint(i)) / "checkpoint.json").write_text("{")
    with pytest.raises(DataError, match=r"(?s)No checkpoint can be read.*000001.*000000"):
        store.latest()


def test_every_flipped_bit_is_refused(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    path = store.save(checkpoint(1))
    for file in path.iterdir():
        data = file.read_bytes()
        for bit in range(0, 8 * len(data), 7):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(DataError, match="No checkpoint can be read"):
                Checkpoints(tmp_path, RUN).latest()
        file.write_bytes(data)
    assert store.latest() is not None


def test_a_damaged_checkpoint_is_dropped_before_a_good_one(tmp_path):
    store = Checkpoints(tmp_path, RUN)
    store.save(checkpoint(1))
    (store.save(checkpoint(2)) / "checkpoint.json").write_text("{")
    again = Checkpoints(tmp_path, RUN)
    assert again.latest().progress["step"] == 1
    again.save(checkpoint(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000000", "000002"]


def test_another_runs_checkpoint_is_refused(tmp_path):
    Checkpoints(tmp_path, RUN).save(checkpoint(1))
    with pytest.raises(DataError, match="a checkpoint of another run"):
        Checkpoints(tmp_path, "1" * 32).latest()


@pytest.mark.parametrize("link", ["unfinished", "unfinished/checkpoint.json"])
def test_nothing_is_written_through_a_link(tmp_path, link):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("x")
    store = Checkpoints(tmp_path / "c", RUN)
    (tmp_path / "c/unfinished").parent.mkdir()
    if link == "unfinished":
        (tmp_path / "c/unfinished").symlink_to(tmp_path / "precious")
    else:
        (tmp_path / "c/unfinished").mkdir()
        (tmp_path / "c/unfinished/checkpoint.json").symlink_to(tmp_path / "precious/file")
    store.save(checkpoint(1))
    assert [p.name for p in (tmp_path / "precious").iterdir()] == ["file"]
    assert (tmp_path / "precious/file").read_text() == "x"
