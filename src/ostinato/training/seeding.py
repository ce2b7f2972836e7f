"""Seeds as a function of (seed, purpose, position), so that a resumed run needs no generator state."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed; different arguments give unrelated streams."""
    # With the length, because numpy takes missing entropy for zeros.
    entropy = [seed, zlib.crc32(purpose.encode()), len(position), *position]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator with the seed of :func:`derive`."""
    return torch.Generator().manual_seed(derive(seed, purpose, *position))


@contextmanager
def seeded(device: torch.device, seed: int, purpose: str, *position: int) -> Iterator[None]:
    """Seed torch's global generators, from which methods draw, inside the block, and restore them afterwards."""
    value = derive(seed, purpose, *position)
    # torch.manual_seed would also seed the generators of other GPUs, which are not restored.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
