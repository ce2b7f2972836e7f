"""A saved learner: every byte checked, replaced by one rename."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from ostinato import artifact
from ostinato.defaults import LARGEST_SIDE
from ostinato.errors import DataError, InputError
from ostinato.locking import locked

ABOUT = {
    "run_id": "0" * 32, "method": "simplecil", "method_file": None, "options": {},
    "backbone": {"name": "x", "weights": None, "size": None, "preprocess": "weights", "length": None, "readout": None,
                 "sizes": None},
    "backbone_sha256": None, "preprocess": {}, "label_groups": None, "class_names": ["a", os.fsdecode(b"caf\xe9")],
    "task_sizes": [2], "protocol": "sample", "seed": 0, "crop": 1.0, "precision": "auto", "train": {},
}  # fmt: skip


def put(folder, value=0.0, **about):
    tensors = {"w": torch.full((50,), value)}
    used = np.array([int(value)], np.uint64)
    artifact.write(folder, ABOUT | {"seed": int(value)} | about, tensors, used, b"text")


def test_what_is_written_is_read(tmp_path):
    put(tmp_path / "a", 3.0)
    saved = artifact.read(tmp_path / "a")
    assert saved.about.model_dump().items() >= (ABOUT | {"seed": 3}).items()
    assert torch.equal(saved.learned["w"], torch.full((50,), 3.0))
    assert saved.used.tolist() == [3]
    assert artifact.method_text(tmp_path / "a").read_bytes() == b"text"


def test_recorded_sizes_are_bounded_as_those_that_are_asked_for(tmp_path):
    arch = {"dim": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "eps": 1e-6, "act": "gelu", "qkv_bias": True,
            "layer_scale": False, "norm": "pre", "causal": False}  # fmt: skip

    def of_side(side):
        preprocess = {"size": side, "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic"}
        return ABOUT["backbone"] | {"sizes": {"arch": arch, "patch": 4, "preprocess": preprocess, "readout": "cls"}}

    put(tmp_path / "a", backbone=of_side(LARGEST_SIDE))
    assert artifact.read(tmp_path / "a").about.backbone.sizes.preprocess.size == LARGEST_SIDE
    with pytest.raises(DataError, match=r"backbone\.sizes\.preprocess\.size"):
        put(tmp_path / "b", backbone=of_side(LARGEST_SIDE + 4))


def test_a_new_one_takes_the_place_of_the_old_and_of_what_a_kill_left(tmp_path):
    put(tmp_path, 1.0)
    (tmp_path / "learned-new.safetensors.part").write_bytes(b"half")
    put(tmp_path, 2.0)
    assert artifact.read(tmp_path).about.seed == 2
    assert len([p for p in tmp_path.iterdir() if p.name != ".lock"]) == 4, "nothing of the old one"
    (tmp_path / "artifact.json").unlink()  # killed before the first was complete
    put(tmp_path, 3.0)
    assert artifact.read(tmp_path).about.seed == 3


def test_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match="exists and is no saved learner"):
        put(tmp_path)
    with pytest.raises(InputError, match="exists and is no saved learner"):
        put(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"is no saved learner: it has no artifact\.json"):
        artifact.read(tmp_path)


@pytest.mark.parametrize(
    "name", ["method-a.py", "learned-final.safetensors", "used-2024.npy", "method-0123456789abcdeg.py"]
)
def test_files_of_like_names_are_not_taken_for_its_own(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("precious")
    with pytest.raises(InputError, match="exists and is no saved learner"):
        put(tmp_path / "mine")
    put(tmp_path / "model")
    (tmp_path / "model" / name).write_text("precious")
    put(tmp_path / "model", 2.0)
    assert (tmp_path / "mine" / name).read_text() == (tmp_path / "model" / name).read_text() == "precious"


def test_one_process_at_a_time_publishes(tmp_path):
    put(tmp_path, 1.0)
    with locked(tmp_path), pytest.raises(InputError, match="is in use by process"):
        put(tmp_path, 2.0)
    assert artifact.read(tmp_path).about.seed == 1


def test_every_flipped_bit_is_refused(tmp_path):
    put(tmp_path)
    for file in tmp_path.iterdir():
        data = file.read_bytes()
        for bit in range(0, 8 * len(data), 7):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            with pytest.raises(DataError):
                artifact.read(tmp_path)
        file.write_bytes(data)
    artifact.read(tmp_path)


def test_the_tensors_of_another_model_are_refused(tmp_path):
    put(tmp_path / "a", 1.0)
    put(tmp_path / "b", 2.0)
    (a,), (b,) = (list((tmp_path / name).glob("learned-*")) for name in "ab")
    a.write_bytes(b.read_bytes())
    with pytest.raises(DataError, match="is damaged: its SHA-256"):
        artifact.read(tmp_path / "a")


@pytest.mark.parametrize("found", [4, 6, "5", None])
def test_other_versions_are_refused_with_a_way_out(tmp_path, found):
    put(tmp_path)
    text = (tmp_path / "artifact.json").read_text()
    shown = f'"{found}"' if isinstance(found, str) else "null" if found is None else str(found)
    (tmp_path / "artifact.json").write_text(text.replace('"format": 5', f'"format": {shown}'))
    with pytest.raises(DataError, match="Install a newer ostinato" if found == 6 else "Learn the model again"):
        artifact.read(tmp_path)


def test_readers_see_the_old_model_or_the_new_one(tmp_path):
    """However often it is replaced while they read."""
    put(tmp_path, 0.0)
    stop = threading.Event()

    def replace_it():
        value = 0
        while not stop.is_set():
            value = (value + 1) % 7
            put(tmp_path, float(value))

    writer = threading.Thread(target=replace_it)
    writer.start()
    try:
        seen, reads = set(), 0
        while reads < 150 or (len(seen) < 3 and writer.is_alive()):
            reads += 1
            saved = artifact.read(tmp_path)
            assert saved.learned["w"].unique().tolist() == [saved.about.seed] == saved.used.tolist()
            seen.add(saved.about.seed)
    finally:
        stop.set()
        writer.join()
    assert len(seen) > 2


def test_a_copy_is_checked_on_the_way(tmp_path):
    put(tmp_path / "a", 1.0)
    put(tmp_path / "b", 2.0)
    artifact.copy(tmp_path / "a", tmp_path / "b")
    one, two = (artifact.read(tmp_path / name).about for name in "ab")
    assert one == two
    (learned,) = (tmp_path / "a").glob("learned-*")
    learned.write_bytes(b"x")
    with pytest.raises(DataError, match="is damaged"):
        artifact.copy(tmp_path / "a", tmp_path / "c")
