"""All randomness as a function of (seed, purpose, position), so that a resumed run needs no generator state."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one purpose at one position; different arguments give unrelated streams."""
    # The length counts too: numpy takes missing entropy for zeros.
    entropy = [seed, zlib.crc32(purpose.encode()), len(position), *position]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator for one purpose at one position."""
    return torch.Generator().manual_seed(derive(seed, purpose, *position))


@contextmanager
def seeded(device: torch.device, seed: int, purpose: str, *position: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and put them back afterwards.

    Methods draw from the global generators as papers' code does; callers never see that it happened.
    """
    value = derive(seed, purpose, *position)
    # Only the generators that are put back are seeded; torch.manual_seed would touch those of every GPU.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(value)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(value)
        yield
