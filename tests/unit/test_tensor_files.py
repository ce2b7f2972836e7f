"""Tensors in files: what the library of the format reads and writes."""

from __future__ import annotations

from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file, save_file

from ostinato.errors import DataError, InputError
from ostinato.tensor_files import read_tensors, write_tensors

KINDS = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.complex64,
)  # fmt: skip


def examples():
    shared = torch.randn(3, 4)
    tensors = {str(kind): torch.randint(0, 2, (3, 2)).to(kind) for kind in KINDS}
    return tensors | {
        "view": shared.T, "same": shared, "one": torch.tensor(2.5), "none": torch.zeros(0, 5), "odd": torch.ones(3) > 0,
        'a "name" é': shared[1:, ::2], "trained": torch.nn.Parameter(shared),
    }  # fmt: skip


def test_the_library_reads_what_is_written(tmp_path):
    tensors = examples()
    stored = write_tensors(tmp_path / "x.safetensors", tensors)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert (stored.file, stored.bytes, stored.sha256) == ("x.safetensors", len(data), sha256(data).hexdigest())
    for read in (load_file(tmp_path / "x.safetensors"), read_tensors(tmp_path, stored)):
        assert read.keys() == tensors.keys()
        for name, value in tensors.items():
            assert torch.equal(read[name], value), name
            assert read[name].dtype == value.dtype


def test_the_bytes_are_those_of_the_library(tmp_path):
    tensors = {k: v.detach().contiguous().clone() for k, v in examples().items() if '"' not in k}
    save_file(tensors, tmp_path / "theirs")
    write_tensors(tmp_path / "ours", tensors)
    assert len((tmp_path / "theirs").read_bytes()) == len((tmp_path / "ours").read_bytes())


def test_other_numbers_are_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"'w' is of torch\.complex128, which files cannot hold"):
        write_tensors(tmp_path / "x", {"w": torch.zeros(1, dtype=torch.complex128)})


def test_nothing_is_written_over(tmp_path):
    write_tensors(tmp_path / "x", {"a": torch.zeros(1)})
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "x", {"a": torch.ones(1)})


def test_other_bytes_are_refused(tmp_path):
    stored = write_tensors(tmp_path / "x", {"a": torch.zeros(300_000)})  # hashed beside the writing
    read_tensors(tmp_path, stored)
    write_tensors(tmp_path / "y", {"a": torch.ones(300_000)})
    (tmp_path / "y").replace(tmp_path / "x")
    with pytest.raises(DataError, match="is damaged"):
        read_tensors(tmp_path, stored)
    garbage = stored.model_copy(update={"bytes": 3, "sha256": sha256(b"abc").hexdigest()})
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(DataError, match="holds no tensors"):
        read_tensors(tmp_path, garbage)
