"""CLIP-PGP: a shared image prompt and learned context per task, on CLIP.

Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI, in its form for CLIP; ``pgp=0`` leaves the projection out.

All tasks train the image prompt, vectors between the CLS token and the patches of every image. The text encoder reads
``<context of the task> <class>.`` for every class. The loss is cross-entropy over the task's classes of the scaled
cosines of image and texts. From the second task on, updates dP of the image prompt are projected off the directions
that tokens x of old tasks use: with ``x dP^T = 0`` old images attend to it as before. A test image is compared with the
texts of all classes seen, each under the context of its own task.

Differences from the paper: the public code scores a batch of test images among the classes up to the largest true task
in that batch; here every image is scored alone, among all classes seen. The code decomposes a matrix over samples and
projects the gradient; here directions are eigenvectors of the tokens' covariance, and the update is projected (see
``nn/projection.py``). The prompt has 5 vectors, as in the paper; the code's configuration has 10. It carries the
position of the CLS token, which a learned vector can absorb. All tasks have the same rate; the code gives the first
task a tenth of it and a larger weight decay.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from torch import Tensor

from ostinato.backbones import ClipBackbone
from ostinato.choices import built
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.words import WordOptions, Words
from ostinato.registry import register

PROMPTS = WordOptions(pgp=0.9)
"""Defaults of the image prompt and class texts."""


@register("clip_pgp")
class ClipPGP(Method):
    """A shared image prompt and learned context per task.

    Args:
        backbone: a CLIP model.
        prompts: options of the prompt and texts, see :class:`ostinato.methods.parts.words.WordOptions`.
    """

    recipe = Recipe(
        epochs=5, batch_size=32, lr=0.01, optimizer="sgd", momentum=0.9, weight_decay=2e-4, schedule="cosine"
    )
    needs = ClipBackbone
    backbone: ClipBackbone

    def __init__(self, backbone: ClipBackbone, **prompts: Annotated[Any, PROMPTS]) -> None:
        super().__init__(backbone)
        self.prompts = Words(backbone, built(PROMPTS, "method", prompts))
        self.texts = self.prompts.make_head()

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's class texts."""
        super().begin_task(task)
        self.texts.open(task, device=self.device)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) of images under the prompt."""
        tokens, _ = self.prompts.enter(x, self.query)
        return self.prompts.read(tokens)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage, projected with ``pgp``."""
        return [Stage(self.loss, step=self.prompts.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.texts.loss(self.features(x), y)}

    def end_task(self, task: LearnTask) -> None:
        """Fix the task's texts; with ``pgp``, collect the directions of its tokens and prompt."""
        self.texts.close()
        self.prompts.end_task(task)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.texts(self.features(x))
