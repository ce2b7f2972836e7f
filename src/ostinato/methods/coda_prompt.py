"""CODA-Prompt: prompts assembled from components by attention.

Smith, Karlinsky, Gutta, Cascante-Bonilla, Kim, Arbelle, Panda, Feris, Kira: "CODA-Prompt: COntinual Decomposed
Attention-based Prompting for Rehearsal-Free Continual Learning", CVPR 2023, https://arxiv.org/abs/2211.13218.

Every prompted layer has components P_m with keys K_m and attention vectors A_m. A sample's prefix is the sum of all
components weighted by the cosine of q(x) * A_m with K_m. Each task adds components and trains only these; earlier ones
take part frozen. New components start orthogonal to all earlier ones (Gram-Schmidt), and an optional penalty keeps them
so.

Differences from the paper: the paper splits 100 components evenly over a known number of tasks; here every task adds
``components``, so that the stream stays open-ended. The penalty is a mean of squares and off by default, as in the
official code (the paper states 0.1). The schedule is applied per step. Rows of the head start with standard deviation
0.02; ``head_init=linear`` draws them as the official code, from U(-1/sqrt(D), 1/sqrt(D)), which costs accuracy in short
runs (``docs/fidelity.md``). Pixels are normalised as the weights expect. A task of one class competes with the frozen
rows of earlier classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.backbones import Backbone, Edit, LayerPlan, prefix_from
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, check_layers, check_positive
from ostinato.nn import PerTask, TaskHeads
from ostinato.registry import register


@register("coda_prompt")
class CODAPrompt(Method):
    """Prefixes as attention-weighted sums of components.

    Args:
        backbone: the frozen encoder.
        layers: prompted layers, from 0.
        components: new components per task and layer.
        length: rows of a component; the first half are keys, the second half values.
        ortho: weight of the orthogonality penalty (lambda).
        head_init: start of the rows of the head, "small" (ours) or "linear" as in the official code.
    """

    recipe = Recipe(epochs=20, batch_size=128, lr=1e-3, optimizer="adam", schedule="quarter_cosine")

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: tuple[int, ...] = (0, 1, 2, 3, 4),
        components: int = 10,
        length: int = 8,
        ortho: float = 0.0,
        head_init: Literal["small", "linear"] = "small",
    ) -> None:
        super().__init__(backbone)
        check_positive(components=components)
        if not layers:
            raise InputError("method.layers must name at least one layer.")
        if length < 2 or length % 2:
            raise InputError(f"method.length must be even, half keys and half values, got {length}.")
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        self.components, self.length, self.ortho = components, length, ortho
        # T of (components, layers, ...): joined along the first axis they are the M components seen so far.
        self.prompts, self.keys, self.attention = PerTask(), PerTask(), PerTask()
        self.head = TaskHeads(backbone.dim)
        self.head_bound = backbone.dim**-0.5 if head_init == "linear" else 0.0

    def begin_task(self, task: LearnTask) -> None:
        """Add components orthogonal to the earlier ones, and rows of the head."""
        super().begin_task(task)
        d = self.backbone.dim
        widths = ((self.prompts, self.length * self.backbone.arch.dim), (self.keys, d), (self.attention, d))
        for bank, width in widths:
            old = bank.joined().detach() if len(bank) else torch.empty(0, len(self.layers), width, device=self.device)
            bank.add(self._orthogonal(old))
        self.head.grow(len(task.classes), device=self.device, bound=self.head_bound)

    def _orthogonal(self, old: Tensor) -> Tensor:
        """Unit vectors (components, layers, width) orthogonal per layer to ``old`` (M, layers, width).

        Vectors beyond the first ``width`` are random, since no orthogonal direction is left.
        """
        m, n_layers, width = old.shape
        new = torch.randn(self.components, n_layers, width, device=old.device)
        for layer in range(n_layers):
            basis = torch.linalg.qr(old[:, layer].double().T).Q if m else old.new_zeros(width, 0).double()
            for i in range(self.components):
                vector = new[i, layer].double()
                if basis.shape[1] < width:
                    for _ in range(2):  # a second sweep removes rounding errors
                        vector = vector - basis @ (basis.T @ vector)
                    basis = torch.cat([basis, F.normalize(vector, dim=0)[:, None]], dim=1)
                new[i, layer] = F.normalize(vector, dim=0).float()
        return new

    def prefixes(self, query: Tensor) -> Tensor:
        """Assembled prefixes (B, layers, 2, P, D) of queries (B, D)."""
        keys = F.normalize(self.keys.joined(), dim=-1)  # (M, layers, D)
        attention = self.attention.joined()
        # cos(q * A, K) without the (B, M, D) product: numerator and norm are matrix products.
        dots = torch.einsum("bd,mld->blm", query, attention * keys)
        norms = torch.einsum("bd,mld->blm", query.square(), attention.square()).clamp(min=1e-24).sqrt()
        prompts = torch.einsum("blm,mlw->blw", dots / norms, self.prompts.joined())
        return prompts.unflatten(-1, (2, self.length // 2, self.backbone.arch.dim))

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) under the assembled prefixes."""
        prefixes = self.prefixes(self.query(x))
        heads = self.backbone.arch.heads
        plan = LayerPlan(
            {layer: Edit(prefix=prefix_from(prefixes[:, i], heads)) for i, layer in enumerate(self.layers)}
        )
        return self.backbone(x, plan)

    def penalty(self) -> Tensor:
        """Mean squared deviation of keys, attention and prompts from orthonormality, summed over layers."""
        terms = []
        for bank in (self.keys, self.attention, self.prompts):
            vectors = bank.joined().transpose(0, 1)  # (layers, M, width)
            gram = vectors @ vectors.mT
            eye = torch.eye(gram.shape[-1], device=gram.device)
            terms.append((gram - eye).square().mean((1, 2)).sum())
        return torch.stack(terms).sum()

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes, and the penalty if it is on."""
        losses = {"ce": self.head.loss(self.features(x), y)}
        if self.ortho:
            losses["ortho"] = self.ortho * self.penalty()
        return losses

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen)."""
        return self.head(self.features(x))
