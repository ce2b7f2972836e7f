"""Classification heads that grow with the tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.nn.growing import PerTask
from ostinato.nn.matching import cosine


class TaskHeads(nn.Module):
    """A linear classifier in fp32 with a block of rows per task.

    Separate blocks keep the rows of old tasks out of weight decay, so that they stay bit-equal.

    Args:
        dim: width D of the features.
        freeze_old: False trains the rows of all classes (sequential fine-tuning).
    """

    def __init__(self, dim: int, *, freeze_old: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.weight = PerTask(freeze_old=freeze_old)
        self.bias = PerTask(freeze_old=freeze_old)

    def grow(self, n_classes: int, *, device: torch.device, bound: float = 0.0) -> None:
        """Add the rows of a task.

        Args:
            n_classes: number of rows.
            device: of the rows.
            bound: draw weights and biases uniformly from [-bound, bound]; 0 for weights from a truncated normal of
                standard deviation 0.02 and biases of 0.
        """
        rows, bias = torch.empty(n_classes, self.dim, device=device), torch.zeros(n_classes, device=device)
        self.weight.add(rows.uniform_(-bound, bound) if bound else nn.init.trunc_normal_(rows, std=0.02))
        self.bias.add(bias.uniform_(-bound, bound) if bound else bias)

    @torch.no_grad()
    def set_rows(self, weight: Tensor, bias: Tensor) -> None:
        """Set the weights (n_seen, D) and biases (n_seen,) of all rows."""
        for part, values in ((self.weight, weight), (self.bias, bias)):
            for rows, new in zip(part, values.split([len(rows) for rows in part]), strict=True):
                rows.copy_(new)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the classes of the newest task.

        A task of a single class competes with the frozen rows of earlier classes.

        Args:
            features: (B, D) of samples of the newest task.
            labels: (B,) among all classes.

        Returns:
            A scalar in fp32.
        """
        n_new = len(self.weight[-1])
        if n_new == 1:
            return F.cross_entropy(self(features), labels)
        first = sum(len(rows) for rows in self.weight) - n_new
        return F.cross_entropy(self.local(features), labels - first)

    def local(self, features: Tensor) -> Tensor:
        """Logits (B, classes of the newest task) of features (B, D)."""
        return _linear(features, self.weight[-1], self.bias[-1])

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D)."""
        return _linear(features, self.weight.joined(), self.bias.joined())


class CosineHeads(nn.Module):
    """Cosine classifier in fp32 with a block of rows per task and a learned scale: ``z_j = sigma cos(f, w_j)``.

    Args:
        dim: width D of the features.
        scale: sigma at the start.
        freeze_old: False trains the rows of all classes.
    """

    def __init__(self, dim: int, *, scale: float = 20.0, freeze_old: bool = True) -> None:
        super().__init__()
        self.dim = dim
        self.weight = PerTask(freeze_old=freeze_old)
        self.scale = nn.Parameter(torch.tensor(scale))

    def grow(self, n_classes: int, *, device: torch.device) -> None:
        """Add the rows of a task: truncated normal of std 0.02."""
        rows = torch.empty(n_classes, self.dim, device=device)
        self.weight.add(nn.init.trunc_normal_(rows, std=0.02))

    @torch.no_grad()
    def set_rows(self, weight: Tensor, *, first: int = 0) -> None:
        """Set the rows of all classes from number ``first``, the first one of a task, to ``weight`` (n_seen, D)."""
        start = 0
        for rows in self.weight:
            if start >= first:
                rows.copy_(weight[start : start + len(rows)])
            start += len(rows)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D)."""
        return self.scale * cosine(features, self.weight.joined())


def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear map in fp32, under autocast as well."""
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(features.float(), weight, bias)
