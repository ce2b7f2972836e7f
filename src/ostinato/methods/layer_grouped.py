"""Hierarchical layer-grouped prompts: a root prompt per task generates a prompt for each group of layers.

Jiang, Kong, Qi, Zhang, Yao, Sheng, Liu, Yang: "Teaching Prompts to Coordinate: Hierarchical Layer-Grouped Prompt
Tuning for Continual Learning", 2025, https://arxiv.org/abs/2511.12090.

Prompts that are independent in every layer can overwrite features of old tasks. Here neighbouring layers form groups
that share a prompt plus a position encoding, and one root prompt R per task generates the prompts S^g of all groups.
As key and value prefix, layer l of group g(l) gets, for an image x and the tasks s seen so far,

    S_s^g = R_s + W_up^g gelu(W_down^g LN(R_s)),    P^l(x) = sum_s w_s(x) (S_s^g(l) + alpha_s E_l).

Reconstruction: only the abstract of the paper was available. It gives the groups, the position encoding, the root
prompt, and final prompts that are a sum over tasks; second-hand summaries add key and value parts of length 10, a root
and a generator that start as copies of the task before, and soft task matching without task ids. All else is a choice
of this reconstruction: three contiguous groups over all layers, a bottleneck of width 16 per group without biases and
with W_up = 0 at first, sinusoids E_l with a learned scale for keys and one for values, weights w from a first pass of
the model (after CAPrompt, or from means of frozen features), cross-entropy over the task's classes, the alignment of
the head, and the recipe. Options switch off each choice, down to independent prompts (``groups`` = number of layers,
``root`` and ``position`` off, ``fusion`` uniform). Do not expect the paper's numbers.

Differences from the paper: as far as known, only the weights differ on purpose. With copies of the task before, a plain
sum would grow the norm of the prompt with every task. The default weights therefore sum to 1; ``fusion="sum"`` draws
each root and generator anew and small, and adds a single encoding. Outputs of the generator are kept instead of
generators. A task of one class competes with the rows of earlier classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import Backbone, Edit, Tokens, prefix_from
from ostinato.choices import Choice, Part
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage, check_layers, check_positive
from ostinato.methods.parts.alignment import DiscriminantOptions, GaussianOptions, NoAlignmentOptions
from ostinato.methods.parts.frozen_term import term_choice
from ostinato.nn import ClassMeans, TaskHeads, cosine
from ostinato.nn.task_weights import weights_by_probability, weights_by_similarity
from ostinato.registry import register

ALPHA = 0.02
"""Initial scale of the position encoding; a larger one would dominate the root prompt."""

ALIGNMENT = Choice(GaussianOptions(samples=256), DiscriminantOptions(), NoAlignmentOptions())
"""Alignment of the head."""

TERM = term_choice(1.0)
"""Terms of the plain encoder."""


def sinusoids(positions: Iterable[int], dim: int) -> Tensor:
    """Encodings (n, dim): entries 2i and 2i + 1 are sine and cosine of l / 10000^(2i / dim) for position l."""
    i = torch.arange((dim + 1) // 2, dtype=torch.float64)
    angles = torch.tensor(list(positions), dtype=torch.float64)[:, None] / 10000 ** (2 * i / dim)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :dim].float()


class Generator(nn.Module):
    """A residual bottleneck per group, shared by keys, values and positions."""

    def __init__(self, groups: int, dim: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.zeros(groups, rank, dim))
        self.up = nn.Parameter(torch.zeros(groups, dim, rank))

    def reset(self) -> None:
        """Initialise: every group's prompt equals the root."""
        nn.init.normal_(self.down, std=self.down.shape[-1] ** -0.5)
        nn.init.zeros_(self.up)

    def forward(self, root: Tensor) -> Tensor:
        """Root (2, P, D) to group prompts (G, 2, P, D)."""
        hidden = F.gelu(torch.einsum("grd,kpd->gkpr", self.down, F.layer_norm(root, root.shape[-1:])))
        return root + torch.einsum("gdr,gkpr->gkpd", self.up, hidden)


@dataclass(frozen=True)
class GroupedPlan:
    """Plan of group prompts plus position encodings, computed per layer.

    Attributes:
        prompts: (B | 1, G, 2, P, D).
        scale: alpha (B | 1, 2) of keys and values.
        encoding: E (n, D) of the n prompted layers.
        places: layer to its row in ``encoding`` and its group.
        heads: attention heads.
    """

    prompts: Tensor
    scale: Tensor
    encoding: Tensor
    places: Mapping[int, tuple[int, int]]
    heads: int

    @property
    def first(self) -> int:
        """The lowest prompted layer."""
        return min(self.places)

    def __call__(self, layer: int, tokens: Tokens) -> Edit | None:  # noqa: ARG002 - plans may read the states
        """Key and value prefixes of a prompted layer."""
        if layer not in self.places:
            return None
        row, group = self.places[layer]
        prompts = self.prompts[:, group] + self.scale[:, :, None, None] * self.encoding[row]
        return Edit(prefix=prefix_from(prompts, self.heads))


@register("layer_grouped")
class LayerGrouped(Method):
    """Prompts per group of layers, generated from a root and mixed over tasks.

    Args:
        backbone: the frozen encoder.
        length: prompt positions per layer; 0 leaves the plain encoder with a trained head.
        groups: groups of neighbouring layers, from 1 to the number of prompted layers.
        layers: prompted layers, from 0; None for all.
        bottleneck: width of the generator.
        root: generate the prompts of all groups from one root; False trains a prompt per group.
        position: add the scaled position encoding of each layer.
        fusion: weights of the tasks. "soft_model": probability of each task's classes in a first pass with equal
            weights; "soft_query": similarity of frozen features to each task's class means; "uniform": all equal;
            "sum": all one, as in the abstract.
        temperature: of "soft_query". A small one gives an image the prompts of one task, as in the statistics for the
            alignment; a large one mixes tasks, and the statistics fit less with every task.
        fusion_in_training: use the weights in training; False uses equal ones, without the first pass of "soft_model".
        warm_start: initialise the root, generator and alpha of a task with those of the task before. Under "sum" this
            holds for alpha alone.
        root_std: standard deviation of a new root.
        align: "gaussians" trains the head of all classes after each task from the second on, on features drawn from
            class Gaussians, see :class:`GaussianOptions`; "discriminant" sets it to the linear discriminant after each
            task. Both take statistics of features under the task's own prompts, or under the mixture if it is the same
            for every image. "none" trains no further.
        frozen_term: scores of the plain encoder to add: "none", or "discriminant", see
            :class:`DiscriminantTermOptions`.
    """

    no_effect: ClassVar = {
        "temperature": ("fusion", ("soft_model", "uniform", "sum")),
        "fusion_in_training": ("fusion", ("uniform", "sum")),
        "bottleneck": ("root", (False,)),
    }
    recipe = Recipe(epochs=20, batch_size=128, lr=1e-3, optimizer="adam", schedule="cosine", clip=1.0)

    encoding: Tensor
    prompts: Tensor
    alphas: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        length: int = 10,
        groups: int = 3,
        layers: tuple[int, ...] | None = None,
        bottleneck: int = 16,
        root: bool = True,
        position: bool = True,
        fusion: Literal["soft_model", "soft_query", "uniform", "sum"] = "soft_model",
        temperature: float = 0.05,
        fusion_in_training: bool = True,
        warm_start: bool = True,
        root_std: float = 0.02,
        align: Annotated[Part, ALIGNMENT] = "gaussians",
        frozen_term: Annotated[Part, TERM] = "none",
    ) -> None:
        super().__init__(backbone)
        d, width, depth = backbone.dim, backbone.arch.dim, backbone.arch.depth
        self.layers = tuple(sorted(check_layers("layers", layers, depth)))
        if not self.layers:
            raise InputError("method.layers must name at least one layer; leave it out for all.")
        if not 1 <= groups <= len(self.layers):
            raise InputError(
                f"method.groups must lie in [1, {len(self.layers)}], the number of prompted layers, got {groups}."
            )
        if length < 0:
            raise InputError(f"method.length must not be negative, got {length}.")
        check_positive(bottleneck=bottleneck)
        for option, value in (("root_std", root_std), ("temperature", temperature)):
            if value <= 0:
                raise InputError(f"method.{option} must be positive, got {value}.")
        if fusion not in (known := ("soft_model", "soft_query", "uniform", "sum")):
            raise InputError(f"method.fusion must be one of {list(known)}, got {fusion!r}.")
        self.fusion, self.fusion_in_training, self.warm_start = fusion, fusion_in_training, warm_start
        self.temperature = temperature
        self.root_std, self.position = root_std, position
        n = len(self.layers)
        self.places = {layer: (i, i * groups // n) for i, layer in enumerate(self.layers)}
        # Trained, for the current task.
        shape = (2, length, width)
        self.root = nn.Parameter(torch.zeros(shape if root else (groups, *shape)))  # without a root: S itself
        self.generator = Generator(groups, width, bottleneck) if root else None
        self.alpha = nn.Parameter(torch.zeros(2), requires_grad=position)
        # Constants of earlier tasks.
        self.register_buffer("prompts", torch.zeros(0, groups, *shape))
        self.register_buffer("alphas", torch.zeros(0, 2))
        self.register_buffer("encoding", sinusoids(self.layers, width), persistent=False)
        self.means = ClassMeans(d)
        self.alignment = ALIGNMENT.read(align, "method.align").build(d)
        # The alignment changes all rows, the main stage the task's rows.
        self.head = TaskHeads(d, freeze_old=not self.alignment.aligns)
        self.frozen_term = TERM.read(frozen_term, "method.frozen_term").build(d)

    @torch.no_grad()
    def begin_task(self, task: LearnTask) -> None:
        """Add rows of the head; initialise the prompts unless they continue those of the task before."""
        super().begin_task(task)
        first = task.index == 0
        if first or not self.warm_start or self.fusion == "sum":
            self.root.normal_(std=self.root_std)
            if self.generator is not None:
                # Under "sum" as well: after the norm its old output would be large even for a small root.
                self.generator.reset()
        if self.position and (first or not (self.warm_start or self.fusion == "sum")):
            self.alpha.fill_(ALPHA)
        self.head.grow(len(task.classes), device=self.device)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Train prompts and the task's rows of the head, then align all rows."""
        trained = [self.root, self.alpha, self.head.weight[-1], self.head.bias[-1]]
        trained += [] if self.generator is None else list(self.generator.parameters())
        fit = Stage(
            self.loss,
            params=[p for p in trained if p.requires_grad],
            prepare=(lambda: self._collect_means(task)) if self.fusion == "soft_query" else None,
        )
        return [fit, *self.alignment.stages(task, self.head, self._newest_features)]

    def _collect_means(self, task: LearnTask) -> None:
        """Add the class means of frozen features."""
        self.means.grow(len(task.classes))
        self.means.update(*task.extract_features(self.query))

    @property
    def refines(self) -> str | None:
        """The class means, if they mix the prompts."""
        if self.fusion != "soft_query":
            return None
        return "the class means that mix its prompts; prompts and head stay as they are"

    def refine(self, task: LearnTask) -> None:
        """Add more samples of known classes to the class means."""
        if self.refines is None:
            super().refine(task)
        self.means.update(*task.extract_features(self.query))
        self.frozen_term.refine(task, self.query)

    def _newest_features(self, x: Tensor) -> Tensor:
        """Features (B, D) for the alignment, under weights that are the same for every sample."""
        if self.fusion in ("uniform", "sum"):
            weights = self._fixed_weights()
        else:
            weights = F.one_hot(torch.tensor([self.n_tasks - 1], device=self.device), self.n_tasks).float()
        plan = self._plan(weights)
        return self.backbone.features(self._tokens(x), plan, start=plan.first)

    def _generated(self) -> Tensor:
        """Group prompts (G, 2, P, D) of the current task."""
        return self.root if self.generator is None else self.generator(self.root)

    def _mixed(self, weights: Tensor, kept: Tensor, current: Callable[[], Tensor]) -> Tensor:
        """Mixture (B | 1, ...) over tasks of kept values (t, ...) and, until it is kept, of the trained one (...)."""
        # Separate products, so that no gradient of the kept values is computed.
        t = len(kept)
        mixture = torch.tensordot(weights[:, :t], kept, 1)
        return mixture if t == self.n_tasks else mixture + torch.tensordot(weights[:, t:], current()[None], 1)

    def _plan(self, weights: Tensor) -> GroupedPlan:
        """Prefixes of the group prompts of all tasks, mixed by weights (B | 1, T)."""
        summed = self.fusion == "sum"  # with the alpha of the newest task alone
        return GroupedPlan(
            self._mixed(weights, self.prompts, self._generated),
            self.alpha[None] if summed else self._mixed(weights, self.alphas, lambda: self.alpha),
            self.encoding,
            self.places,
            self.backbone.arch.heads,
        )

    def _fixed_weights(self) -> Tensor:
        """Weights (1, T) that are the same for every sample."""
        return torch.full((1, self.n_tasks), 1.0 if self.fusion == "sum" else 1 / self.n_tasks, device=self.device)

    @torch.no_grad()
    def _weights(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Weights (B | 1, T) of images x with the given tokens before the lowest prompted layer."""
        fixed = self._fixed_weights()
        if self.n_tasks == 1 or self.fusion in ("uniform", "sum") or (self.training and not self.fusion_in_training):
            return fixed
        sizes = [len(rows) for rows in self.head.weight]
        if self.fusion == "soft_query":
            return weights_by_similarity(cosine(self.query(x), self.means.means()), sizes, self.temperature)
        features = self.backbone.features(tokens, self._plan(fixed), start=self.layers[0])
        return weights_by_probability(self.head(features), sizes)

    @torch.no_grad()
    def _tokens(self, x: Tensor) -> Tokens:
        """Tokens before the lowest prompted layer, which no prompt has changed."""
        return self.states(x, self.layers[0])

    def features(self, x: Tensor) -> Tensor:
        """Features (B, D) under each image's mixture of prompts; weights have no gradient."""
        tokens = self._tokens(x)
        plan = self._plan(self._weights(x, tokens))
        return self.backbone.features(tokens, plan, start=plan.first)

    def task_weights(self, x: Tensor) -> Tensor:
        """Weights w (B, T) of the tasks; rows sum to 1, but under "sum" all are 1."""
        return self._weights(x, self._tokens(x)).expand(len(x), -1)

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the task's classes."""
        return {"ce": self.head.loss(self.features(x), y)}

    def end_task(self, task: LearnTask) -> None:
        """Align the head where no stage does; keep statistics, and the group prompts and alpha as constants."""
        self.alignment.end_task(task, self.head, self._newest_features)
        self.frozen_term.end_task(task, self.query)
        self.prompts = torch.cat([self.prompts, self._generated().detach()[None]])
        self.alphas = torch.cat([self.alphas, self.alpha.detach()[None]])

    def scores(self, x: Tensor) -> Tensor:
        """Logits (B, n_seen), with the frozen term."""
        return self.frozen_term.add(self.head(self.features(x)), x, self.query)
