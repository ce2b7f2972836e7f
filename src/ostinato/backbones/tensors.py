"""Reader of tensors from untrusted files: no code runs, and every tensor is checked."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ostinato.errors import InputError
from ostinato.quoting import quoted

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_WRAPPERS = ("state_dict", "model", "teacher", "module")
_NAMED = 4
"""Tensors that a message names for each kind of fault."""


def read_tensors(path: Path, where: str = "backbone.weights") -> dict[str, Tensor]:
    """Read named tensors from a safetensors or pth file, unwrapped from the usual containers, without running code.

    Raises:
        InputError: if the file is missing, has another format or content, or claims more than it holds; the message
            starts with ``where``, the option or model of the file.
    """
    if not path.is_file():
        raise InputError(f"{where}: no file at {quoted(str(path))}. Give the path of a safetensors, pth or npz file.")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    except Exception as error:  # decoders raise nearly anything for damaged files
        first = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{where}: {quoted(str(path))} cannot be read as safetensors or as a pth of plain tensors "
            f"({type(error).__name__}: {first[:200]}). Save the tensors with safetensors.torch.save_file."
        ) from error
    for _ in _WRAPPERS:  # each at most once: a mapping of a pth may hold itself
        if isinstance(state, Mapping) and (inner := [w for w in _WRAPPERS if isinstance(state.get(w), Mapping)]):
            state = state[inner[0]]
    plain = isinstance(state, Mapping) and all(isinstance(k, str) and _is_plain(v) for k, v in state.items())
    if not plain:
        raise InputError(f"{where}: {quoted(str(path))} must hold a mapping of names to tensors.")
    if sum(v.nbytes for v in state.values()) > 4 * path.stat().st_size + 2**20:
        raise InputError(
            f"{where}: the tensors in {quoted(str(path))} must be no larger than the file, but repeat themselves. Save "
            "them written out, with safetensors.torch.save_file."
        )
    return dict(state)


def _is_plain(value: Any) -> bool:
    """Whether a value is an ordinary tensor in memory."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    return not value.is_quantized


def _unpickled(path: Path) -> Any:
    """Load a pth file; an archive that unpacks to more than its size is a ValueError."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("the archive is packed or holds its parts twice, which torch.save does not do")
    return torch.load(path, map_location="cpu", weights_only=True)


class Taken:
    """Access to the tensors of a file, each by name and expected shape; messages start with ``where``."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors, self.where = tensors, where

    def __call__(self, name: str, *shape: int) -> Tensor:
        """Tensor of a name in fp32, checked as in :func:`fitting`."""
        return fitting(self.tensors, {name: shape}, self.where)[name]


def fitting(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: str, *, whole: bool = False
) -> dict[str, Tensor]:
    """Select the tensors of these names and shapes, in fp32; with ``whole``, any other tensor is an error.

    Raises:
        InputError: naming tensors that are missing, unknown, of another shape or not of floating-point numbers.
    """
    there = {k: tensors[k] for k in shapes if k in tensors}
    faults = {
        "missing": [k for k in shapes if k not in tensors],
        "unknown": [quoted(k) for k in tensors if k not in shapes] if whole else [],
        "wrong shape": [
            f"{k} {tuple(v.shape)} for {shapes[k]}" for k, v in there.items() if tuple(v.shape) != shapes[k]
        ],
        "not floating-point": [f"{k} {v.dtype}" for k, v in there.items() if v.dtype not in _FLOATS],
    }
    if any(faults.values()):
        parts = [
            f"{fault}: {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
            for fault, names in faults.items()
            if names
        ]
        raise InputError(
            f"{where}: the tensors do not fit; {'; '.join(parts)}. "
            "Choose the architecture that the file was saved from."
        )
    return {k: v.float() for k, v in there.items()}


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors with NaN or an infinity, which would make every feature NaN.

    Raises:
        InputError: naming the first.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all():
            raise InputError(
                f"{where}: tensors must be finite, but {name!r} holds NaN or an infinity. Take weights that were saved "
                "before training failed."
            )


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values in fp32, in the order of their names."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode() + tensors[key].float().contiguous().numpy().tobytes())
    return digest.hexdigest()
