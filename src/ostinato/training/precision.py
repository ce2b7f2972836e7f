"""Device and precision: frozen weights in bf16 on devices that are faster with it, learned parameters in fp32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from ostinato.backbones.edits import fused_bf16
from ostinato.errors import InputError
from ostinato.methods.base import Method
from ostinato.training.rates import bf16_gain

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

FASTER = 1.2
"""Smallest speed-up of bf16 over fp32 that is worth its rounding."""


def resolve_device(name: str = "auto") -> torch.device:
    """A device by name; "auto" is CUDA if available.

    Raises:
        InputError: if the device is unknown or not available.
    """
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError, NotImplementedError, UnicodeError) as error:
        raise InputError(f"device: {name!r} cannot be used here ({error}). Use auto, cpu or cuda:N.") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device: {name!r} is not supported (statistics are kept in fp64). Use auto, cpu or cuda:N.")
    return device


@dataclass(frozen=True)
class Precision:
    """Precision of frozen weights, with the reason for the record of a run."""

    dtype: torch.dtype
    reason: str


def choose_precision(name: str, device: torch.device) -> Precision:
    """Precision of frozen weights by name; "auto" is bf16 if the device multiplies it faster than fp32.

    Raises:
        InputError: for an unknown name.
    """
    if name != "auto":
        if name not in DTYPES:
            raise InputError(f"precision must be auto, fp32 or bf16, got {name!r}.")
        return Precision(DTYPES[name], "asked for")
    if device.type == "cuda":
        # torch answers for the current device.
        with nullcontext() if device.index is None else torch.cuda.device(device):
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        says = "has" if fast else "has no"
        return Precision(torch.bfloat16 if fast else torch.float32, f"the device {says} instructions for bf16")
    if device.type != "cpu" or not fused_bf16():
        return Precision(torch.float32, "the processor has no kernels for bf16")
    gain = bf16_gain()
    fast = gain >= FASTER
    return Precision(
        torch.bfloat16 if fast else torch.float32,
        f"a linear map in bf16 takes {1 / gain:.2f} of its time in fp32 on this processor",
    )


def precision_name(dtype: torch.dtype) -> str:
    """The name of a precision."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def prepare(method: Method, device: torch.device, dtype: torch.dtype) -> None:
    """Move a method to a device, with frozen weights in ``dtype`` and trained ones in fp32.

    In fp32 it also switches off TF32, to which torch rounds the inputs of convolutions on GPUs, for the whole process.
    """
    method.to(device)
    if device.type == "cuda" and dtype == torch.float32:
        torch.backends.cudnn.allow_tf32 = False
    if not method.trains_backbone:
        method.backbone.cast(dtype)


def compute(method: Method, device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Context of a forward pass: autocast if fp32 weights are trained in lower precision."""
    if method.trains_backbone and dtype != torch.float32:
        return torch.autocast(device.type, dtype)
    return nullcontext()
