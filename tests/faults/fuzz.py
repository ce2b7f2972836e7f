"""Feed damaged inputs to what reads them: only documented errors may leave it.

A target reads bytes as one kind of input (an override, a table, an image, ...). ``seeds`` are intact inputs, which
``mutated`` damages. ``tests/faults/test_fuzz_*.py`` feed each target a few hundred, ``make faults`` a million in all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ostinato.errors import OstinatoError


@dataclass(frozen=True)
class Target:
    """One reader of one kind of input.

    Attributes:
        name: unique.
        seeds: makes intact inputs.
        read: reads an input; may raise an ``OstinatoError``, and nothing else.
        words: pieces that mutations insert, such as keywords and numbers at limits.
        cost: inputs of the cheapest target in the time of one of this; ``make faults`` gives fewer where it is high.
    """

    name: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[bytes], object]
    words: tuple[bytes, ...] = ()
    cost: float = 1.0


def accepts(target: Target, data: bytes) -> bool:
    """Whether an input is read; an undocumented exception passes through."""
    try:
        target.read(data)
    except OstinatoError:
        return False
    return True


INTERESTING = (
    b"",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\x1b[2J",
    b"-1",
    b"9" * 40,
    b"1e999",
    b"nan",
    b"~nosuchuser/",
    b"[" * 2000,
)
"""Pieces that break readers of any kind."""


def mutated(seeds: Sequence[bytes], words: Sequence[bytes], draw: random.Random) -> Iterator[bytes]:
    """Endless damaged inputs: some of one to four mutations of a seed, some of pieces put together.

    Args:
        seeds: intact inputs.
        words: pieces to insert.
        draw: source of all choices.
    """
    pieces = [*words, *INTERESTING]
    while True:
        data = bytearray(draw.choice(seeds))
        for _ in range(draw.randint(1, 4)):
            _mutate(data, seeds, pieces, draw)
        yield bytes(data)


def _mutate(data: bytearray, seeds: Sequence[bytes], pieces: Sequence[bytes], draw: random.Random) -> None:
    at = draw.randint(0, len(data))
    kind = draw.randint(0, 6)
    if kind == 0 and data:
        data[at % len(data)] ^= 1 << draw.randint(0, 7)
    elif kind == 1 and data:
        data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randint(0, 255)))
    elif kind == 2:
        del data[at : at + draw.choice((1, 2, 8, 64, len(data)))]
    elif kind == 3:
        data[at:at] = draw.choice(pieces)
    elif kind == 4:
        piece = draw.choice(pieces)
        data[at : at + len(piece)] = piece
    elif kind == 5:
        data[at : at + 16] = data[at : at + 16] * draw.choice((2, 3, 50))
    else:
        other = draw.choice(seeds)
        begin = draw.randint(0, len(other))
        data[at:] = other[begin:]
