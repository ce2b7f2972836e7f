"""Banks of edits of linear maps per task: masks, low-rank updates, adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ostinato.backbones import Arch, Edit, LayerPlan, LinearEdit
from ostinato.nn import Growing, PerTask
from ostinato.nn.masks import initial_mask, initial_scores, keep_largest

LinearEdits = dict[int, dict[str, LinearEdit]]

VARIANTS = {
    "attn": ("q", "k", "v"),
    "attn+proj": ("q", "k", "v", "proj"),
    "ff": ("q", "k", "v", "proj", "fc1", "fc2"),
}
"""Masked linear maps of a layer by the name of the variant."""


class Bank(nn.Module):
    """Base class of banks.

    Args:
        arch: sizes of the encoder.
        layers: edited layers.
        maps: edited linear maps of each layer.
        freeze_old: whether the edits of earlier tasks are frozen; False for methods that share one edit between tasks.

    Attributes:
        superposes: whether every edit is a mask, so that the masks of all tasks can be superposed.
    """

    superposes: ClassVar[bool] = False

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], *, freeze_old: bool = True) -> None:
        super().__init__()
        self.arch, self.places, self.freeze_old = arch, [(i, name) for i in layers for name in maps], freeze_old

    def room(self, *, trains: bool = True) -> nn.ModuleDict:
        """An empty :class:`PerTask` for every edited map, by layer and map."""
        return grouped({place: PerTask(freeze_old=self.freeze_old, trains=trains) for place in self.places})

    def begin_task(self, device: torch.device) -> None:
        """Add the edits of a task."""
        raise NotImplementedError

    def end_task(self) -> None:
        """Close the newest task."""

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """Edit of one map under a task, counted from 0."""
        raise NotImplementedError

    def edits(self, task: int) -> LinearEdits:
        """Edits of all maps under a task, counted from 0."""
        return self.each(lambda i, name: self.edit(i, name, task))

    def each(self, edit: Callable[[int, str], LinearEdit]) -> LinearEdits:
        """Edits of all maps, given a function of layer and map."""
        edits: LinearEdits = {}
        for i, name in self.places:
            edits.setdefault(i, {})[name] = edit(i, name)
        return edits

    def plan(self, task: int) -> LayerPlan:
        """Plan of all edits under a task, counted from 0."""
        return plan_of(self.edits(task))


def plan_of(edits: LinearEdits) -> LayerPlan:
    """Plan of edits of linear maps alone."""
    return LayerPlan({layer: Edit(linear=maps) for layer, maps in edits.items()})


def grouped(parts: dict[tuple[int, str], nn.Module]) -> nn.ModuleDict:
    """Nest modules by layer and map."""
    layers = nn.ModuleDict()
    for (i, name), part in parts.items():
        if str(i) not in layers:
            layers[str(i)] = nn.ModuleDict()
        cast(nn.ModuleDict, layers[str(i)])[name] = part
    return layers


def at(parts: nn.ModuleDict, layer: int, name: str) -> PerTask:
    """The module of a layer and map, typed as :class:`PerTask`."""
    return cast(PerTask, cast(nn.ModuleDict, parts[str(layer)])[name])


class Masks(Bank):
    """A real-valued mask of every map per task; ``init`` is the kind of :func:`ostinato.nn.masks.initial_mask`."""

    superposes = True

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], init: str) -> None:
        super().__init__(arch, layers, maps)
        self.init = init
        self.masks = self.room()  # T masks (out, in)

    def begin_task(self, device: torch.device) -> None:
        """Add a mask of every map."""
        for i, name in self.places:
            at(self.masks, i, name).add(initial_mask(*self.arch.shape_of(name), self.init, device=device))

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """Mask of a task."""
        return LinearEdit(mask=at(self.masks, layer, name)[task])


class Scored(Growing):
    """Scores of one weight (out, in), and binary masks of finished tasks; see :class:`ScoredMasks`."""

    masks: Tensor
    minor: Tensor

    def __init__(self, shape: tuple[int, int], keep: float, kind: str) -> None:
        super().__init__()
        self.shape, self.keep, self.kind = shape, keep, kind
        self.scores = nn.Parameter(initial_scores(*shape, device=torch.device("cpu")))
        self.values = PerTask()  # of "hybrid": T of (out, in)
        self.register_buffer("masks", torch.zeros((0, *shape), dtype=torch.bool))
        self.register_buffer("minor", torch.rand(shape if kind == "soft" else (0, 0)))

    def begin(self) -> None:
        """Begin a task."""
        if self.kind == "hybrid":
            self.values.add(initial_mask(*self.shape, "uniform", device=self.scores.device))

    def end(self) -> None:
        """Store the binary mask of the finished task."""
        self.masks = torch.cat([self.masks, keep_largest(self.scores.detach(), self.keep)[None] > 0])

    def mask(self, task: int) -> Tensor:
        """Mask (out, in) of a task, computed from the scores during its training."""
        kept = self.masks[task].float() if task < len(self.masks) else keep_largest(self.scores, self.keep)
        if self.kind == "hybrid":
            return kept * self.values[task]
        return kept + self.minor * (1 - kept) if self.kind == "soft" else kept


class ScoredMasks(Bank):
    """Masks of the top-scored weights per task; all tasks train the same scores.

    Args:
        arch: sizes of the encoder.
        layers: edited layers.
        maps: edited linear maps of each layer.
        keep: share of entries kept per map.
        kind: "binary"; "hybrid" multiplies kept entries by a learned value per task; "soft" multiplies dropped entries
            by a fixed share drawn from U(0, 1) instead of 0.
    """

    superposes = True

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], keep: float, kind: str) -> None:
        super().__init__(arch, layers, maps)
        self.maps = grouped({(i, name): Scored(arch.shape_of(name), keep, kind) for i, name in self.places})

    def scored(self) -> Iterator[Scored]:
        """Scores of every map."""
        for i, name in self.places:
            yield cast(Scored, at(self.maps, i, name))

    def begin_task(self, device: torch.device) -> None:  # noqa: ARG002 - that of the scores
        """Begin a task."""
        for weight in self.scored():
            weight.begin()

    def end_task(self) -> None:
        """Store the task's masks."""
        for weight in self.scored():
            weight.end()

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """Mask of a task."""
        return LinearEdit(mask=cast(Scored, at(self.maps, layer, name)).mask(task))


class Factors(Bank):
    """Base class of low-rank updates and adapters: two factors of rank r of every map per task.

    Args:
        arch: sizes of the encoder.
        layers: edited layers.
        maps: edited linear maps of each layer.
        rank: r.
        bound: first factors begin at numbers from U(-bound, bound); None for 1 / sqrt(r width). Second ones are zero.
        freeze_old: as for :class:`Bank`.
        trains_down: False makes the first factors constants, for values set from data.

    Attributes:
        on_output: whether the first factor reads a map's output instead of its input.
    """

    on_output: ClassVar[bool] = False

    def __init__(
        self,
        arch: Arch,
        layers: Sequence[int],
        maps: Sequence[str],
        rank: int,
        *,
        bound: float | None = None,
        freeze_old: bool = True,
        trains_down: bool = True,
    ) -> None:
        super().__init__(arch, layers, maps, freeze_old=freeze_old)
        self.rank, self.bound = rank, bound
        self.down, self.up = self.room(trains=trains_down), self.room()  # T of (r, width) and of (out, r)

    def begin_task(self, device: torch.device) -> None:
        """Add first factors of random numbers and second factors of zeros."""
        for i, name in self.places:
            out, into = self.arch.shape_of(name)
            width = out if self.on_output else into
            bound = (self.rank * width) ** -0.5 if self.bound is None else self.bound
            at(self.down, i, name).add(torch.empty(self.rank, width, device=device).uniform_(-bound, bound))
            at(self.up, i, name).add(torch.zeros(out, self.rank, device=device))


class LowRank(Factors):
    """Low-rank updates ``W + scale B A``."""

    def __init__(
        self,
        arch: Arch,
        layers: Sequence[int],
        maps: Sequence[str],
        rank: int,
        scale: float,
        *,
        bound: float | None = None,
        freeze_old: bool = True,
        trains_down: bool = True,
    ) -> None:
        super().__init__(arch, layers, maps, rank, bound=bound, freeze_old=freeze_old, trains_down=trains_down)
        self.scale = scale

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """Update of a task."""
        a, b = at(self.down, layer, name)[task], at(self.up, layer, name)[task]
        return LinearEdit(down=a, up=self.scale * b)

    def summed(self, weights: Callable[[Tensor, Tensor], Tensor] | None = None) -> LayerPlan:
        """Plan of the updates of all tasks at once, ``W + scale sum_t w_t B_t A_t``, as one update of rank T r.

        Args:
            weights: from the first factors (T, r, width) and second ones (T, out, r) of a map to w (T,); None for 1.
        """

        def joined(layer: int, name: str) -> LinearEdit:
            down, up = at(self.down, layer, name).stacked(), at(self.up, layer, name).stacked()
            up = self.scale * up if weights is None else (self.scale * weights(down, up))[:, None, None] * up
            return LinearEdit(down=down.flatten(0, 1), up=up.movedim(0, 1).flatten(1))

        return plan_of(self.each(joined))


class Adapters(Factors):
    """Serial bottleneck adapters ``y + U gelu(D y)`` on the output y of a map."""

    on_output = True

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """Adapter of a task."""
        return LinearEdit(inner=at(self.down, layer, name)[task], outer=at(self.up, layer, name)[task])
