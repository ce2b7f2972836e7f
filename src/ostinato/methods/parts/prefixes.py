"""Key and value prefixes of DualPrompt: general ones for all tasks, expert ones per task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from ostinato.backbones import Backbone, Edit, LayerPlan, prefix_from
from ostinato.choices import Options, Share, Size
from ostinato.errors import InputError
from ostinato.methods.base import check_layers
from ostinato.methods.parts.prompts import Edits, Prompts
from ostinato.nn import PerTask


class PrefixOptions(Options, frozen=True):
    """Options of the prefixes of DualPrompt.

    Attributes:
        g_layers: layers with the general prefix, from 0; may be empty.
        e_layers: layers with expert prefixes, from 0; None for the layers whose linear maps are edited.
        g_length: positions of the general prefix.
        e_length: positions of an expert prefix.
        warm_start: initialise a task's expert as a copy of the one before.
        pgp: share of the energy of old queries that updates of key prefixes must avoid, in (0, 1]; 0 is off. It needs
            ``warm_start``.
    """

    name: Literal["dualprompt"] = "dualprompt"
    g_layers: tuple[int, ...] = (0, 1)
    e_layers: tuple[int, ...] | None = None
    g_length: Size = 5
    e_length: Size = 5
    warm_start: bool = True
    pgp: Share = 0.0

    def build(self, backbone: Backbone, layers: Sequence[int], where: str) -> Prefixes:
        """Make the prefixes; experts are in ``layers`` if ``e_layers`` is None. Errors name options under ``where``."""
        options = self if self.e_layers is not None else self.model_copy(update={"e_layers": tuple(layers)})
        return Prefixes(backbone, options, where)


class Prefixes(Prompts):
    """General and expert prefixes; errors name options under ``where``."""

    def __init__(self, backbone: Backbone, options: PrefixOptions, where: str = "method") -> None:
        depth, dim = backbone.arch.depth, backbone.arch.dim
        g_layers = check_layers("g_layers", options.g_layers, depth, where)
        e_layers = check_layers("e_layers", options.e_layers, depth, where)
        if shared := set(g_layers) & set(e_layers):
            raise InputError(
                f"{where}.g_layers and {where}.e_layers must not share layers, both have {sorted(shared)}."
            )
        if not e_layers:
            raise InputError(f"{where}.e_layers must name at least one layer.")
        if options.pgp and not options.warm_start:
            raise InputError(f"{where}.pgp needs {where}.warm_start=true: it keeps experts near the one before.")
        shares = [options.pgp] * (len(g_layers) + len(e_layers)) if options.pgp else []
        super().__init__(backbone, shares, blocks=backbone.arch.heads)
        self.g_layers, self.task_layers, self.warm_start = g_layers, e_layers, options.warm_start
        self.e_shape = (len(e_layers), 2, options.e_length, dim)
        general = torch.empty(len(g_layers), 2, options.g_length, dim).uniform_(-1, 1)
        self.g_prompt = nn.Parameter(general, requires_grad=bool(g_layers))
        self.e_prompt = PerTask()  # T of (E layers, 2, P, D)

    @property
    def e_layers(self) -> tuple[int, ...]:
        """Layers with expert prefixes."""
        return self.task_layers

    @property
    def first(self) -> int:
        """The lowest prompted layer."""
        return min((*self.g_layers, *self.e_layers))

    def begin_task(self) -> None:
        """Add an expert, drawn from U(-1, 1) or copied from the one before."""
        fresh = torch.empty(self.e_shape, device=self.g_prompt.device).uniform_(-1, 1)
        copy = self.warm_start and len(self.e_prompt) > 0
        self.e_prompt.add(self.e_prompt[-1].detach().clone() if copy else fresh)

    def edits(self, e_prompt: Tensor) -> Edits:
        """Prefixes by layer for experts (B | 1, E layers, 2, P, D)."""
        heads, n = self.backbone.arch.heads, e_prompt.shape[0]
        general = {
            layer: Edit(prefix=prefix_from(self.g_prompt[i].expand(n, *self.g_prompt.shape[1:]), heads))
            for i, layer in enumerate(self.g_layers)  # a file of torch.export cannot hold a split into no parts
        }
        return general | {i: Edit(prefix=prefix_from(e_prompt[:, j], heads)) for j, i in enumerate(self.e_layers)}

    def under(self, task: int) -> Edits:
        """Prefixes of one task."""
        return self.edits(self.e_prompt[task][None])

    def under_each(self, tasks: Tensor) -> Edits:
        """Prefixes of the task of each sample."""
        return self.edits(self.e_prompt.stacked()[tasks])

    def under_all(self) -> Edits:
        """Prefixes of all tasks; general ones once."""
        edits, e_prompt = self.under(-1), self.e_prompt.stacked()
        for j, i in enumerate(self.e_layers):
            keys, values = prefix_from(e_prompt[:, j], self.backbone.arch.heads)
            edits[i] = replace(edits[i], prefix=(keys[:, None], values[:, None]))
        return edits

    def protected(self) -> list[Tensor]:
        """Key half (P, D) of each layer's prefix; values are free."""
        return [*self.g_prompt.detach()[:, 0], *self.e_prompt[-1].detach()[:, 0]]

    def rows(self, x: Tensor) -> list[Tensor]:
        """Attention queries of each prompted layer under the newest prefixes."""
        plan, found = LayerPlan(self.under(-1)), {}
        tokens, at = self.backbone.embed(x), 0
        for layer in sorted((*self.g_layers, *self.e_layers)):
            tokens, at = self.backbone.run(tokens, plan, start=at, stop=layer), layer
            found[layer] = tokens._replace(h=self.backbone.queries(layer, tokens.h)).real()
        return [found[layer] for layer in (*self.g_layers, *self.e_layers)]
