"""CLIP-PGP: an image prompt for all tasks and learned words for each, on CLIP.

Qiao, Zhang, Tan, Chen, Qu, Peng, Xie: "Prompt Gradient Projection for Continual Learning", ICLR 2024,
https://openreview.net/forum?id=EH2O3h7sBI, in its form for CLIP; ``pgp=0`` leaves the projection out.

Vectors stand between the CLS token and the patches of every image; all tasks train them. The classes of a task are
described by ``<vectors of the task> <class>.``, read by the text encoder. The loss is cross-entropy over the task's
classes of the scaled cosines of image and texts. From the second task on, updates of the image prompt are projected off
the directions that tokens and prompts of old tasks use: with ``x dP^T = 0`` old images attend to it as before. A
test image is compared with the texts of all classes seen, each under the vectors of its own task.

Differences from the paper: the public code scores a batch of test images among the classes up to the largest true task
in that batch; here every image is scored alone, among all classes seen. Directions are found in feature space, by
eigenvectors of the tokens' covariance, and the update after the optimiser is projected, where the code decomposes a
matrix over samples and projects the gradient (see ``nn/projection.py``). The prompt carries the position of the CLS
token, which a learned vector can take up. One rate for all tasks; the code begins with a tenth of it and a larger
weight decay in the first.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from ostinato.backbones import ClipBackbone
from ostinato.choices import built
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.methods.parts.words import WordOptions, Words
from ostinato.registry import register


@register("clip_pgp")
class ClipPGP(Method):
    """A shared image prompt and learned words per task.

    Args:
        backbone: a CLIP model.
        length: vectors of the image prompt.
        context: learned vectors in the texts of a task.
        pgp: share of the energy of old tokens that updates of the image prompt must leave alone, in (0, 1]; 0 is off.
    """

    recipe = Recipe(
        epochs=5, batch_size=32, lr=0.01, optimizer="sgd", momentum=0.9, weight_decay=2e-4, schedule="cosine"
    )
    needs = ClipBackbone
    backbone: ClipBackbone

    def __init__(self, backbone: ClipBackbone, *, length: int = 10, context: int = 16, pgp: float = 0.9) -> None:
        super().__init__(backbone)
        self.prompts = Words(backbone, built(WordOptions, "method", length=length, context=context, pgp=pgp))
        self.texts = self.prompts.make_head()

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's learned words."""
        super().begin_task(task)
        self.texts.open(task, device=self.device)

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) of images with the prompt among their tokens."""
        tokens, _ = self.prompts.enter(x, self.query)
        return self.prompts.read(tokens)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; its updates are projected from the second task on."""
        return [Stage(self.loss, step=self.prompts.step(task))]

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.texts.loss(self.features(x), y)}

    def end_task(self, task: LearnTask) -> None:
        """Fix the task's texts; keep the directions of its tokens, and of the prompt beside them."""
        self.texts.close()
        self.prompts.end_task(task)

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.texts(self.features(x))
