"""Batches in a seeded order that any number of workers reproduces and that can start at any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ostinato.engine.seeding import generator
from ostinato.world import ALONE, World


def _load(
    dataset: Dataset[Any], batches: list[list[Any]], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    for x, y in loader:
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def n_batches(n: int, batch_size: int) -> int:
    """Batches per epoch; the last one may be smaller and is kept."""
    return -(-n // batch_size)


def training_batches(
    dataset: Dataset[Any], batch_size: int, *, seed: int, position: tuple[int, ...], epoch: int, start: int,
    device: torch.device, workers: int = 0, world: World = ALONE,
) -> Iterator[tuple[Tensor, Tensor, float]]:  # fmt: skip
    """Batches of one epoch, or this process's share of each.

    Args:
        dataset: indexed by (sample, draw); a new draw is a new augmentation.
        batch_size: samples per batch.
        seed: of the run.
        position: (task, stage), part of the seed of the order.
        epoch: part of the seed of the order, and the draw.
        start: first batch to give; earlier ones are skipped without loading them.
        device: where the batches go.
        workers: loading processes; the batches do not depend on it.
        world: the processes that share every batch.

    Yields:
        (x, y, share): samples and what part of the batch they are. A process whose part is empty gets one sample
        with a share of 0, so that it takes the step with the others.
    """
    n = len(dataset)  # pyright: ignore[reportArgumentType]
    order = torch.randperm(n, generator=generator(seed, "order", *position, epoch)).tolist()
    batches = [[(i, epoch) for i in order[b : b + batch_size]] for b in range(start * batch_size, n, batch_size)]
    mine = [world.share(batch) for batch in batches]
    some = [part or batch[:1] for part, batch in zip(mine, batches, strict=True)]
    shares = [len(part) / len(batch) for part, batch in zip(mine, batches, strict=True)]
    for (x, y), share in zip(_load(dataset, some, device, workers), shares, strict=True):
        yield x, y, share


def fixed_batches(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    device: torch.device,
    order: list[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once without augmentation, in the given or the natural order."""
    order = list(range(len(dataset))) if order is None else order  # pyright: ignore[reportArgumentType]
    return given_batches(dataset, cut(order, batch_size), device=device, workers=workers)


def cut(order: list[int], size: int) -> list[list[int]]:
    """Consecutive batches of ``size``; the last one may be smaller."""
    return [order[b : b + size] for b in range(0, len(order), size)]


def given_batches(
    dataset: Dataset[Any], batches: list[list[int]], *, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The named samples without augmentation, batch by batch."""
    return _load(dataset, batches, device, workers)
