"""``torch.compile`` for the layers of a backbone."""

from __future__ import annotations

import warnings

import torch

from ostinato.backbones import Backbone


def compile_layers(backbone: Backbone, device: torch.device, *, backend: str = "inductor") -> bool:
    """Compile the layers of a backbone in place, once per kind of edit.

    Edits are arguments, so a new task needs no new graph. The last layer is not compiled, since its output is read at
    few positions. The first steps take some minutes longer; results differ by rounding.

    Args:
        backbone: to compile.
        device: of the backbone.
        backend: of torch.compile.

    Returns:
        Whether the layers are compiled; False, with a warning, if the machine lacks a C++ compiler, for example.
    """
    try:
        torch.compile(lambda x: x * 2 + 1, backend=backend)(torch.ones(8, device=device))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        warnings.warn(f"compile: torch.compile does not work here ({reason}); layers run uncompiled.", stacklevel=2)
        return False
    for block in list(backbone.encoder.blocks)[:-1]:
        block.compile(backend=backend, dynamic=True)
    return True
