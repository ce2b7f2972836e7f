"""Classifier of CLIP text features of class names.

Learned context vectors: Zhou, Yang, Loy, Liu: "Learning to Prompt for Vision-Language Models", IJCV 2022,
https://arxiv.org/abs/2109.01134 (CoOp).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import ClipBackbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.nn import Growing, PerTask


def names_of(task: LearnTask) -> list[str]:
    """Class names of a task, with spaces for underscores.

    Raises:
        InputError: if the task lacks them.
    """
    if len(task.class_names) != len(task.classes):
        raise InputError(
            f"Task {task.index} must bring the names of its {len(task.classes)} classes, which the text encoder reads; "
            f"it brings {len(task.class_names)}."
        )
    return [name.replace("_", " ") for name in task.class_names]


class ClassTexts(Growing):
    """Logits ``s cos(f, t_c)`` of features f and the text feature t_c of every class, with the scale s of CLIP.

    The text of a class is ``<learned context> <class>.``, with the context shared by the classes of a task. Closing a
    task fixes its text features.

    Args:
        backbone: a CLIP model.
        length: context vectors per task.
    """

    ids: Tensor
    closed: Tensor

    def __init__(self, backbone: ClipBackbone, length: int) -> None:
        super().__init__()
        self.backbone, self.length = backbone, length
        self.contexts = PerTask()  # T of (length, width of the text encoder)
        self.register_buffer("ids", torch.zeros(0, 0, dtype=torch.int64))  # tokens of the open task's classes
        self.register_buffer("closed", torch.zeros(0, backbone.joint_dim))  # text features of closed tasks

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Add the classes of a task, with context from N(0, 0.02^2)."""
        tower = self.backbone.text
        texts = [f"{name}." for name in names_of(task)]
        self.ids = tower.ids(texts, room=self.length).to(device)
        self.contexts.add(torch.randn(self.length, tower.arch.dim, device=device) * 0.02)

    @torch.no_grad()
    def close(self) -> None:
        """Fix the text features of the newest task."""
        self.closed, self.ids = self.texts(), self.ids[:0]

    def newest(self) -> Tensor:
        """Text features (classes of the open task, E), differentiable in the context."""
        return self.backbone.text(self.ids, self.contexts[-1])

    def texts(self) -> Tensor:
        """Text features (n_seen, E) of all classes."""
        return torch.cat([self.closed, self.newest()]) if len(self.ids) else self.closed

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of features (B, D) and labels (B,) over the classes of the open task, or all if it has one."""
        if len(self.ids) == 1:
            return F.cross_entropy(self(features), labels)
        return F.cross_entropy(self._logits(features, self.newest()), labels - len(self.closed))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D)."""
        return self._logits(features, self.texts())

    def _logits(self, features: Tensor, texts: Tensor) -> Tensor:
        return self.backbone.scale * self.backbone.joint(features) @ texts.mT
