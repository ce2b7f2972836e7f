"""Process group of a run, started by ``torchrun`` or ``accelerate launch`` on one or several machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from ostinato.errors import InputError

Item = TypeVar("Item")


@dataclass(frozen=True)
class ProcessGroup:
    """Processes that share a run; with one process, nothing is exchanged.

    All processes hold the same method and take the same steps in the same order. Each computes its share of a batch;
    gradients, statistics, counts and decisions are combined.

    Attributes:
        rank: index of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Tell whether this process writes logs, checkpoints and plots."""
        return self.rank == 0

    def shard(self, items: Sequence[Item]) -> list[Item]:
        """Take this process's part of items; parts are consecutive, differ by at most one item, and may be empty."""
        return list(items[self.rank * len(items) // self.size : (self.rank + 1) * len(items) // self.size])

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over processes, in one exchange per dtype and device."""
        if self.size == 1:
            return
        groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for t in tensors:
            groups.setdefault((t.dtype, t.device), []).append(t)
        for group in groups.values():
            flat = torch.cat([t.detach().reshape(-1) for t in group])
            dist.all_reduce(flat)
            for t, part in zip(group, flat.split([t.numel() for t in group]), strict=True):
                t.detach().copy_(part.view_as(t))

    def all_reduce_gradients(self, params: Sequence[torch.nn.Parameter]) -> None:
        """Sum gradients; a parameter without a gradient in every process keeps none."""
        if self.size == 1 or not params:
            return
        present = torch.tensor([p.grad is not None for p in params], dtype=torch.int32, device=params[0].device)
        self.all_reduce([present])
        for p, n in zip(params, present.tolist(), strict=True):
            if n and p.grad is None:
                p.grad = torch.zeros_like(p)
        self.all_reduce([p.grad for p in params if p.grad is not None])

    def all_gather(self, local: Tensor) -> Tensor:
        """Concatenate rows (n_r, ...) of all processes by rank; sizes may differ."""
        if self.size == 1:
            return local
        sizes = torch.zeros(self.size, dtype=torch.int64, device=local.device)
        sizes[self.rank] = len(local)
        self.all_reduce([sizes])
        longest = int(sizes.max())
        padded = local.new_zeros(longest, *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes.tolist(), strict=True)])

    def any(self, flag: bool, device: torch.device) -> bool:
        """Tell whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor([int(flag)], device=device)
        self.all_reduce([flags])
        return bool(flags.item())

    def broadcast_object(self, value: Item) -> Item:
        """Return the value of the main process, which must support pickling."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the main process."""
        if self.size > 1:
            for t in tensors:
                dist.broadcast(t.detach(), 0)


SINGLE_PROCESS = ProcessGroup()


def world_size() -> int:
    """Number of processes of the launcher; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


@contextmanager
def process_group(device: str = "auto") -> Iterator[ProcessGroup]:
    """Join the processes of a launcher within the block; without a launcher, yield a single process.

    Args:
        device: "auto" or "cuda" gives every process of a machine its own GPU, if there are GPUs.

    Raises:
        InputError: if the device has a number, since the processes would share it.
    """
    size = world_size()
    if size == 1:
        yield SINGLE_PROCESS
        return
    if device.startswith("cuda:"):
        raise InputError(f"device={device} would be shared by {size} processes. Use auto, cuda or cpu.")
    cuda = device in ("auto", "cuda") and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
