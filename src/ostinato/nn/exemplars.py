"""Memory of training samples for replay."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone, TextBackbone
from ostinato.nn.growing import Growing


class Exemplars(Growing):
    """Stored samples with their labels and tasks: images as bytes, texts as token ids padded to the longest.

    Args:
        backbone: its kind decides between images and texts.
    """

    x: Tensor
    y: Tensor
    tasks: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.fill = backbone.tokenization.pad if isinstance(backbone, TextBackbone) else None
        self.register_buffer("x", torch.zeros(0, dtype=torch.uint8 if self.fill is None else torch.int64))
        self.register_buffer("y", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("tasks", torch.zeros(0, dtype=torch.int64))

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.y)

    def add(self, x: Tensor, y: Tensor, task: int) -> None:
        """Store samples x (n, ...) of a task with labels (n,)."""
        x = x.to(self.x.dtype)
        if self.fill is not None and len(self):
            width = max(x.shape[1], self.x.shape[1])
            self.x, x = (F.pad(part, (0, width - part.shape[1]), value=self.fill) for part in (self.x, x))
        self.x = torch.cat([self.x, x]) if len(self) else x
        self.y = torch.cat([self.y, y])
        self.tasks = torch.cat([self.tasks, torch.full_like(y, task)])

    def at(self, rows: Tensor) -> Tensor:
        """Samples at positions (n,); texts are cut to the longest among them."""
        x = self.x[rows]
        return x if self.fill is None else x[:, : max(1, int((x != self.fill).sum(1).max()))]

    def batches(self, size: int = 64) -> Iterator[Tensor]:
        """All samples, ``size`` at a time."""
        return map(self.at, torch.arange(len(self), device=self.y.device).split(size))

    def draw(self, n: int) -> Tensor:
        """Positions (n,) drawn with replacement from torch's global generator."""
        return torch.randint(len(self), (n,)).to(self.y.device)
