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

import torch
from torch import Tensor, nn

from ostinato.backbones import ClipBackbone, Plan, Tokens
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_positive, plain_step
from ostinato.methods.class_texts import ClassTexts
from ostinato.nn.projection import Covariance, Subspaces, sampled
from ostinato.registry import register

IMAGES = 768
"""Training images of a task whose tokens are collected for the projection."""


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
        check_positive(length=length, context=context)
        if not 0 <= pgp <= 1:
            raise InputError(f"method.pgp must be 0 (off) or a share of energy in (0, 1], got {pgp}.")
        self.pgp = pgp
        self.prompt = nn.Parameter(torch.randn(length, backbone.dim) * 0.02)
        self.texts = ClassTexts(backbone, context)
        self.spaces = Subspaces(1 if pgp else 0, backbone.dim)

    def begin_task(self, task: LearnTask) -> None:
        """Add the task's learned words."""
        super().begin_task(task)
        self.texts.open(task)

    def enter(self, x: Tensor) -> tuple[Tokens, Losses]:
        """States that enter layer 0 with the image prompt, and no loss term of its own."""
        return self.backbone.embed(x).insert(self.backbone.as_tokens(self.prompt)[None], at=1), {}

    def read(self, tokens: Tokens, plan: Plan | None = None, *, start: int = 0) -> Tensor:
        """Features (B, D) of states that enter layer ``start``, with the edits of a plan where one is given."""
        return self.backbone.features(tokens, plan, start=start)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """One stage; its updates are projected from the second task on."""
        return [Stage(self.loss, step=self._step if self.pgp and task.index else plain_step)]

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, projected for the image prompt."""
        self.spaces.step(optimizer, [self.prompt.detach()])

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.texts.loss(self.read(self.enter(x)[0]), y)}

    def end_task(self, task: LearnTask) -> None:
        """Fix the task's texts; add the directions of its tokens, and of the prompt beside them."""
        self.texts.close()
        if not self.pgp:
            return
        rows = Covariance(self.backbone.dim, device=self.device)
        prompt = self.backbone.placed_prompts(self.prompt)
        n = len(task.train)  # pyright: ignore[reportArgumentType]
        for x in sampled(task.batches(), n, IMAGES):
            rows.add(self.backbone.placed(x).insert(prompt[None]).real())
        self.spaces.add([rows], [self.pgp])

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.texts(self.read(self.enter(x)[0]))
