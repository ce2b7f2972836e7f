"""Batches in a seeded order that any number of workers reproduces and that can start at any step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import OstinatoError
from ostinato.streams.base import LabeledDataset, Samples
from ostinato.training.seeding import generator


class _Guarded(Dataset[Any]):
    """Samples, or what a user can do something about: a worker that raised it would wrap it in its own trace."""

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset
        self._join = getattr(dataset, "collate", default_collate)

    def __getitems__(self, keys: list[Any]) -> list[Any] | Exception:
        try:
            return [self.dataset[key] for key in keys]
        except (OstinatoError, OSError) as error:
            return error

    def collate(self, samples: list[Any] | Exception) -> Any:
        return samples if isinstance(samples, Exception) else self._join(samples)


def _load(
    dataset: Samples, batches: list[list[Any]], device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    guarded = _Guarded(dataset)
    loader = DataLoader(
        guarded,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
        collate_fn=guarded.collate,
    )
    for batch in loader:
        if isinstance(batch, Exception):
            raise batch
        x, y = batch
        yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def n_batches(n: int, batch_size: int) -> int:
    """Batches per epoch; the last one may be smaller and is kept."""
    return -(-n // batch_size)


def training_batches(
    dataset: Samples, batch_size: int, *, seed: int, position: tuple[int, ...], epoch: int, start: int,
    device: torch.device, workers: int = 0, processes: ProcessGroup = SINGLE_PROCESS,
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
        processes: those that share every batch.

    Yields:
        (x, y, share): samples and what part of the batch they are. A process whose part is empty gets one sample
        with a share of 0, so that it takes the step with the others.
    """
    n = len(dataset)
    draw = generator(seed, "order", *position, epoch)
    cuts = by_length(dataset, torch.randperm(n, generator=draw).tolist(), batch_size, draw)[start:]
    batches = [[(i, epoch) for i in some] for some in cuts]
    mine = [processes.shard(batch) for batch in batches]
    some = [part or batch[:1] for part, batch in zip(mine, batches, strict=True)]
    shares = [len(part) / len(batch) for part, batch in zip(mine, batches, strict=True)]
    for (x, y), share in zip(_load(dataset, some, device, workers), shares, strict=True):
        yield x, y, share


def fixed_batches(
    dataset: Samples,
    batch_size: int,
    *,
    device: torch.device,
    order: list[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once without augmentation, in the given or the natural order; for ``batch_size`` see ``pack``."""
    order = list(range(len(dataset))) if order is None else order
    return given_batches(dataset, pack(dataset, order, batch_size), device=device, workers=workers)


WINDOW = 16
"""Batches among which samples are sorted by length: enough to fill up little, few enough to stay random."""


def _sizes(dataset: Samples) -> list[int] | None:
    return dataset.sizes() if isinstance(dataset, LabeledDataset) else None


def by_length(dataset: Samples, order: list[int], size: int, draw: torch.Generator) -> list[list[int]]:
    """Training batches of ``size`` in a random order; samples of varying length meet others of like length.

    Args:
        dataset: knows the lengths, where they vary; otherwise the order is cut as it is.
        order: positions in random order.
        size: samples per batch.
        draw: shuffles the batches within a window of the order.
    """
    sizes = _sizes(dataset)
    if sizes is None:
        return cut(order, size)
    batches: list[list[int]] = []
    for window in cut(order, WINDOW * size):
        near = cut(sorted(window, key=sizes.__getitem__), size)
        # The one that may be smaller stays at the end of the epoch.
        batches += [near[i] for i in torch.randperm(len(near) - 1, generator=draw).tolist()] + [near[-1]]
    return batches


def pack(dataset: Samples, order: list[int], size: int, *, keep_order: bool = True) -> list[list[int]]:
    """Batches for passes without training, of ``size`` samples or, where these vary in length, of as many tokens.

    A batch is then filled up to its longest sample, and has no more tokens than ``size`` of the greatest length.

    Args:
        dataset: knows the lengths, where they vary.
        order: positions.
        size: samples of the greatest length.
        keep_order: False lets samples of like length meet.
    """
    sizes = _sizes(dataset)
    if sizes is None:
        return cut(order, size)
    budget = size * dataset.longest  # pyright: ignore[reportAttributeAccessIssue]
    batches: list[list[int]] = []
    longest = 0
    for i in order if keep_order else sorted(order, key=sizes.__getitem__):
        longest = max(longest, sizes[i])
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = sizes[i]
        batches[-1].append(i)
    return batches


def cut(order: list[int], size: int) -> list[list[int]]:
    """Consecutive batches of ``size``; the last one may be smaller."""
    return [order[b : b + size] for b in range(0, len(order), size)]


def given_batches(
    dataset: Samples, batches: list[list[int]], *, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The named samples without augmentation, batch by batch."""
    return _load(dataset, batches, device, workers)
