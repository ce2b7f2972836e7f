"""A classifier made of texts: what CLIP's text encoder says of the name of each class.

Prompts of words or of learned vectors: Zhou, Yang, Loy, Liu: "Learning to Prompt for Vision-Language Models", IJCV
2022, https://arxiv.org/abs/2109.01134 (CoOp).
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
    """The names of a task's classes as words.

    Raises:
        InputError: if the task does not say them.
    """
    if len(task.class_names) != len(task.classes):
        raise InputError(
            f"Task {task.index} must bring the names of its {len(task.classes)} classes, which are read by the text "
            f"encoder; it brings {len(task.class_names)}."
        )
    return [name.replace("_", " ") for name in task.class_names]


class ClassTexts(Growing):
    """Scores ``s cos(f, t_c)`` of features f with the text t_c of every class, s the scale of the weights.

    The texts of a task are ``<learned vectors> <class>.``, with vectors that its classes share. When the task is closed
    its texts are features once and for all.

    Args:
        backbone: whose text encoder reads them.
        length: learned vectors per task.
    """

    ids: Tensor
    closed: Tensor

    def __init__(self, backbone: ClipBackbone, length: int) -> None:
        super().__init__()
        self.backbone, self.length = backbone, length
        self.contexts = PerTask()  # T of (length, width of the text encoder)
        self.register_buffer("ids", torch.zeros(0, 0, dtype=torch.int64))  # tokens of the open task's classes
        self.register_buffer("closed", torch.zeros(0, backbone.joint_dim))  # texts of all others

    def open(self, task: LearnTask, *, device: torch.device) -> None:
        """Begin with the classes of a task; vectors from N(0, 0.02^2)."""
        tower = self.backbone.text
        texts = [f"{name}." for name in names_of(task)]
        self.ids = tower.ids(texts, room=self.length).to(device)
        self.contexts.add(torch.randn(self.length, tower.arch.dim, device=device) * 0.02)

    @torch.no_grad()
    def close(self) -> None:
        """Keep the texts of the newest task as they are now."""
        self.closed, self.ids = self.texts(), self.ids[:0]

    def newest(self) -> Tensor:
        """Texts (classes of the open task, E), differentiable in the learned vectors."""
        return self.backbone.text(self.ids, self.contexts[-1])

    def texts(self) -> Tensor:
        """Texts (n_seen, E) of all classes."""
        return torch.cat([self.closed, self.newest()]) if len(self.ids) else self.closed

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over the classes of the open task; a single one competes with all before.

        Args:
            features: (B, D) of samples of the task.
            labels: (B,) among all classes.
        """
        if len(self.ids) == 1:
            return F.cross_entropy(self(features), labels)
        return F.cross_entropy(self._logits(features, self.newest()), labels - len(self.closed))

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, n_seen) of features (B, D)."""
        return self._logits(features, self.texts())

    def _logits(self, features: Tensor, texts: Tensor) -> Tensor:
        return self.backbone.scale * self.backbone.joint(features) @ texts.mT
