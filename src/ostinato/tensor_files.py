"""Tensors as files in the safetensors format, hashed while they are written.

The format's own library copies every tensor twice on the way and leaves the hash for later, so that a checkpoint would
take half as long again. Reading is the library's.
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
"""Kinds of numbers under the format's names."""

_ALIGNED = 8


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> StoredFile:
    """Write tensors, from wherever they are, into a file that must not exist yet.

    Args:
        path: of the file.
        tensors: of floating-point numbers, integers or truth values.

    Returns:
        The file's name, size and SHA-256.

    Raises:
        InputError: for a kind of numbers that the format has no name for.
    """
    parts = _parts(tensors)
    return StoredFile(file=path.name, sha256=write_new(path, *parts), bytes=sum(len(part) for part in parts))


def _parts(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Header and contents; a tensor on the CPU is not copied."""
    header: dict[str, object] = {}
    contents: list[memoryview] = []
    end = 0
    # The widest numbers first, so that each begins at a multiple of its width.
    for name in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        flat = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        begin, end = end, end + flat.numel()
        if tensors[name].dtype not in _NAMES:
            raise InputError(
                f"The learned tensor {name!r} is of {tensors[name].dtype}, which no file holds; convert it."
            )
        kind, shape = _NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
        contents.append(flat.numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return [len(text).to_bytes(8, "little") + text, *contents]


def read_tensors(folder: Path, stored: StoredFile) -> dict[str, Tensor]:
    """Read tensors, if the file is the one that was stored.

    Raises:
        DataError: if it is missing, has other bytes, or holds no tensors.
    """
    return tensors_of(read_stored(folder, stored.file, stored.bytes, stored.sha256), folder / stored.file)


def tensors_of(data: bytes, where: Path) -> dict[str, Tensor]:
    """The tensors in the bytes of a file.

    Raises:
        DataError: if there are none.
    """
    try:
        return load(data)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{where} holds no tensors ({error}). Restore it from a copy.") from None
