"""Reader of npz weights, which are checked before timm reads them."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ostinato.errors import InputError
from ostinato.quoting import quoted

_SLACK = 2**28
"""Bytes that a file may hold beside the model: heads, and state of its training."""


def load_npz(path: Path, model: Any) -> None:
    """Fill a timm model in place from a file in the layout in which its architecture was published.

    Raises:
        InputError: if the file is missing, damaged, or of another model.
    """
    if not path.is_file():
        raise InputError(f"backbone.weights: no file at {quoted(str(path))}.")
    _check(path, model)
    try:
        model.load_pretrained(str(path))
    except Exception as error:  # of zip, numpy, torch and timm, which raise nearly anything for damaged files
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error


def _check(path: Path, model: nn.Module) -> None:
    """Refuse a file that is not an archive of plain arrays, or far larger or smaller than the model, by its headers."""
    sizes = [p.numel() for name, p in model.named_parameters() if name != "pos_embed"]
    most = 2 * 4 * sum(p.numel() for p in model.parameters()) + _SLACK
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if (total := sum(member.file_size for member in members)) > most:
                raise _unreadable(path, f"it unpacks to {total} bytes, and the model has {4 * sum(sizes)}")
            numbers = sum(_count(archive, member, path) for member in members)
    except InputError:
        raise
    except Exception as error:  # of zipfile and its unpackers, which raise errors of many kinds
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if numbers < sum(sizes):  # timm would repeat small arrays to fill large ones
        raise _unreadable(path, f"it holds {numbers} numbers, and the model has {sum(sizes)}")


def _count(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> int:
    """Number of elements of an array, by its header."""
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    name = quoted(member.filename.removesuffix(".npy"))
    if dtype.hasobject:
        raise _unreadable(path, f"{name} is of dtype {dtype}, and objects are never unpickled")
    if (claimed := math.prod(shape) * dtype.itemsize) > member.file_size:
        raise _unreadable(path, f"{name} claims {claimed} bytes and has {member.file_size}")
    return math.prod(shape)


def _unreadable(path: Path, reason: str) -> InputError:
    """Make the error for a file that cannot be read, with the reason."""
    first = next(iter(reason.splitlines()), "")[:300]
    return InputError(
        f"backbone.weights: {quoted(str(path))} cannot be read as the npz of a ViT ({first}). "
        "Give the file that the architecture was published with, or a safetensors file."
    )
