"""Tensor files in the safetensors format, hashed during the write.

The safetensors library copies every tensor twice and does not hash, which would make checkpoints 50 % slower. It is
used for reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from ostinato.errors import DataError, InputError
from ostinato.files import read_stored, write_new
from ostinato.records import StoredFile

_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.complex64: "C64",
}  # fmt: skip
"""Names of dtypes in the format."""

_ALIGNED = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> StoredFile:
    """Write tensors of any device into a new file.

    Returns:
        Name, size and SHA-256 of the file.

    Raises:
        InputError: if the format has no such dtype.
    """
    parts = _parts(tensors)
    return StoredFile(file=path.name, sha256=write_new(path, *parts), bytes=sum(len(part) for part in parts))


def _parts(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Header and contents; a tensor on the CPU is not copied."""
    header: dict[str, object] = {}
    contents: list[memoryview] = []
    end = 0
    # The widest dtypes come first, so that every tensor is aligned to its width.
    for name in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        begin, end = end, end + flat.numel()
        if tensors[name].dtype not in _NAMES:
            raise InputError(
                f"The learned tensor {name!r} is of {tensors[name].dtype}, which files cannot hold. Convert it."
            )
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        contents.append(flat.numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return [len(text).to_bytes(8, "little") + text, *contents]


def read_tensors(folder: Path, stored: StoredFile) -> dict[str, Tensor]:
    """Read and verify a file of tensors.

    Raises:
        DataError: if the file is missing, changed, or holds no tensors.
    """
    return tensors_of(read_stored(folder, stored.file, stored.bytes, stored.sha256), folder / stored.file)


def tensors_of(data: bytes, where: Path) -> dict[str, Tensor]:
    """Decode the tensors in the bytes of a file.

    Raises:
        DataError: if the bytes are no tensors.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where} holds no tensors ({error}). Restore it from a copy.") from None
