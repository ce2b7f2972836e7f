"""Zero-shot CLIP: classify images by the text features of class names.

Radford, Kim, Hallacy, Ramesh, Goh, Agarwal, Sastry, Askell, Mishkin, Clark, Krueger, Sutskever: "Learning Transferable
Visual Models From Natural Language Supervision", ICML 2021, https://arxiv.org/abs/2103.00020, section 3.1.

Nothing is trained. The weight of a class is the mean text feature of its name in all templates.

Differences from the paper: one template by default; the paper averages over 80 for ImageNet. ``method.templates`` gives
more. Underscores in names are read as spaces.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import ClipBackbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Method, Stage
from ostinato.methods.parts.class_texts import names_of
from ostinato.registry import register


@register("zero_shot")
class ZeroShot(Method):
    """Scaled cosine with the texts of classes.

    Args:
        backbone: a CLIP model.
        templates: sentences with ``{}`` for the name of a class.
    """

    needs = ClipBackbone
    backbone: ClipBackbone
    texts: Tensor

    def __init__(self, backbone: ClipBackbone, *, templates: tuple[str, ...] = ("a photo of a {}.",)) -> None:
        super().__init__(backbone)
        backbone.check_joint("zero_shot")
        if not templates or any("{}" not in template for template in templates):
            raise InputError(f"method.templates must be sentences with {{}} for the class, got {list(templates)}.")
        self.templates = templates
        self.register_buffer("texts", torch.zeros(0, backbone.joint_dim))

    def stages(self, task: LearnTask) -> list[Stage]:  # noqa: ARG002
        """No stage."""
        return []

    def end_task(self, task: LearnTask) -> None:
        """Add the text features of the task's classes."""
        tower = self.backbone.text
        rows = [
            tower(tower.ids([template.replace("{}", name) for template in self.templates]).to(self.device)).mean(0)
            for name in names_of(task)
        ]
        self.texts = torch.cat([self.texts, F.normalize(torch.stack(rows), dim=-1)])

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.backbone.scale * self.backbone.joint(self.query(x)) @ self.texts.mT
