"""``torch.compile`` for the layers of a backbone; plans stay outside."""

from __future__ import annotations

import warnings

import torch

from ostinato.backbones import Backbone


def compile_layers(backbone: Backbone, device: torch.device, *, backend: str = "inductor") -> bool:
    """Let torch compile what every layer computes, once for all layers that are edited alike.

    What a layer does differently comes in as data, so that a new task needs no new graph. The last layer, whose output
    is read at a few positions only, stays as it is. The first steps take some minutes longer; results differ by
    rounding.

    Args:
        backbone: whose layers are compiled in place.
        device: where it computes.
        backend: of torch.compile.

    Returns:
        Whether they are compiled. Where the machine lacks what that needs, such as a C++ compiler, one warning says so
        and the layers run as they are.
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
