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

    @property
    def n_bytes(self) -> int:
        """Bytes of the samples, without labels and tasks."""
        return self.x.numel() * self.x.element_size()

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

    def keep(self, rows: Tensor) -> None:
        """Keep the samples at positions (n,) alone, in this order."""
        self.x, self.y, self.tasks = self.x[rows], self.y[rows], self.tasks[rows]


def first_of_each_class(labels: Tensor, n: int) -> Tensor:
    """Ascending positions of the first ``n`` samples of every class among labels (m,)."""
    order = labels.argsort(stable=True)
    sizes = torch.bincount(labels)
    rank = torch.arange(len(labels), device=labels.device) - (sizes.cumsum(0) - sizes)[labels[order]]
    return order[rank < n].sort().values


@torch.no_grad()
def herding(features: Tensor, n: int) -> Tensor:
    """Positions of up to ``n`` samples whose mean comes near the mean of all, the most important one first.

    Rebuffi, Kolesnikov, Sperl, Lampert: "iCaRL", CVPR 2017, algorithm 4. The k-th sample minimises
    ``|mu - (f(x) + sum of the k - 1 chosen) / k|``, where mu is the mean of all features f, each of length 1.

    Args:
        features: (m, D) of the samples of one class.
        n: samples to choose; m if there are fewer.
    """
    features = F.normalize(features.double(), dim=-1)
    goal, total = features.mean(0), torch.zeros_like(features[0])
    left = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen: list[int] = []
    for k in range(1, min(n, len(features)) + 1):
        far = (goal - (total + features) / k).norm(dim=1)
        chosen.append(int(torch.where(left, far, torch.inf).argmin()))
        left[chosen[-1]] = False
        total = total + features[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)
