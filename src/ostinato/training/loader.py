"""Batches in a seeded order that does not depend on the number of workers and can start at any step."""

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
    """Returns expected errors instead of raising them, since a worker would wrap them in a traceback."""

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
    """Batches per epoch, with the last one that may be smaller."""
    return -(-n // batch_size)


def training_batches(
    dataset: Samples, batch_size: int, *, seed: int, position: tuple[int, ...], epoch: int, start: int,
    device: torch.device, workers: int = 0, processes: ProcessGroup = SINGLE_PROCESS,
) -> Iterator[tuple[Tensor, Tensor, float]]:  # fmt: skip
    """Yield (x, y, share) of this process for every batch of an epoch; share is its fraction of the batch.

    A process without a sample in a batch gets one with share 0, so that it takes the step with the others.

    Args:
        dataset: indexed by (sample, draw); a new draw is a new augmentation.
        batch_size: samples per batch.
        seed: of the run.
        position: (task, stage), part of the seed of the order.
        epoch: part of the seed of the order, and the draw.
        start: first batch; earlier ones are not loaded.
        device: of the batches.
        workers: loading processes.
        processes: that share every batch.
    """
    draw = generator(seed, "order", *position, epoch)
    order = torch.randperm(len(dataset), generator=draw).tolist()
    batches = [[(i, epoch) for i in batch] for batch in by_length(dataset, order, batch_size, draw)[start:]]
    parts = [processes.shard(batch) for batch in batches]
    loaded = [part or batch[:1] for part, batch in zip(parts, batches, strict=True)]
    shares = [len(part) / len(batch) for part, batch in zip(parts, batches, strict=True)]
    for (x, y), share in zip(_load(dataset, loaded, device, workers), shares, strict=True):
        yield x, y, share


def fixed_batches(
    dataset: Samples, batch_size: int, *, device: torch.device, order: list[int] | None = None, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every sample once without augmentation, in a given or the natural order; for ``batch_size`` see ``pack``."""
    order = list(range(len(dataset))) if order is None else order
    return given_batches(dataset, pack(dataset, order, batch_size), device=device, workers=workers)


WINDOW = 16
"""Batches within which samples are sorted by length: enough for little padding, few enough for a random order."""


def _sizes(dataset: Samples) -> list[int] | None:
    return dataset.sizes() if isinstance(dataset, LabeledDataset) else None


def by_length(dataset: Samples, order: list[int], size: int, draw: torch.Generator) -> list[list[int]]:
    """Training batches of ``size`` samples from a random order; texts are grouped by similar length.

    Args:
        dataset: with lengths, if they vary; otherwise the order is only cut.
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
        # The last batch, which may be smaller, stays last.
        batches += [near[i] for i in torch.randperm(len(near) - 1, generator=draw).tolist()] + [near[-1]]
    return batches


def pack(dataset: Samples, order: list[int], size: int, *, keep_order: bool = True) -> list[list[int]]:
    """Batches for passes without training, of ``size`` samples, or, for texts, of at most as many tokens with padding.

    Args:
        dataset: with lengths, if they vary.
        order: positions.
        size: samples of the greatest length.
        keep_order: False groups samples by similar length.
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
    """Consecutive batches of ``size``; the last may be smaller."""
    return [order[b : b + size] for b in range(0, len(order), size)]


def given_batches(
    dataset: Samples, batches: list[list[int]], *, device: torch.device, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of samples at given positions, without augmentation."""
    return _load(dataset, batches, device, workers)
