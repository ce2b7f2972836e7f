"""Banks of edits per task: what the linear maps of chosen layers do differently under each task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from ostinato.backbones import Arch, LinearEdit
from ostinato.nn import Growing, PerTask
from ostinato.nn.masks import initial_mask, initial_scores, keep_largest

LinearEdits = dict[int, dict[str, LinearEdit]]

VARIANTS = {
    "attn": ("q", "k", "v"),
    "attn+proj": ("q", "k", "v", "proj"),
    "ff": ("q", "k", "v", "proj", "fc1", "fc2"),
}
"""Maps of a layer that masks may change."""


class Bank(nn.Module):
    """Base of all banks.

    Args:
        arch: sizes of the encoder.
        layers: edited ones.
        maps: edited in each of them.
        freeze_old: False lets the edits of earlier tasks learn on, for methods that share one edit between tasks.

    Attributes:
        superposes: whether every edit is a mask, so that those of all tasks can be superposed.
    """

    superposes: ClassVar[bool] = False

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], *, freeze_old: bool = True) -> None:
        super().__init__()
        self.arch, self.places, self.freeze_old = arch, [(i, name) for i in layers for name in maps], freeze_old

    def room(self) -> nn.ModuleDict:
        """A parameter per task for every edited map, by layer and map."""
        return grouped({place: PerTask(freeze_old=self.freeze_old) for place in self.places})

    def begin_task(self, device: torch.device) -> None:
        """Add the edits of a task."""
        raise NotImplementedError

    def end_task(self) -> None:
        """Close the newest task."""

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """What one map does differently under a task, counted from 0."""
        raise NotImplementedError

    def edits(self, task: int) -> LinearEdits:
        """What every edited map does differently under a task, counted from 0."""
        found: LinearEdits = {}
        for i, name in self.places:
            found.setdefault(i, {})[name] = self.edit(i, name, task)
        return found


def grouped(parts: dict[tuple[int, str], nn.Module]) -> nn.ModuleDict:
    """Modules by layer and map as nested ones."""
    layers = nn.ModuleDict()
    for (i, name), part in parts.items():
        if str(i) not in layers:
            layers[str(i)] = nn.ModuleDict()
        cast(nn.ModuleDict, layers[str(i)])[name] = part
    return layers


def at(parts: nn.ModuleDict, layer: int, name: str) -> PerTask:
    """The parameters per task of a layer and map."""
    return cast(PerTask, cast(nn.ModuleDict, parts[str(layer)])[name])


class Masks(Bank):
    """A real-valued mask of every map for every task.

    Args:
        arch: sizes of the encoder.
        layers: edited ones.
        maps: edited in each of them.
        init: of a mask, see :func:`ostinato.nn.masks.initial_mask`.
    """

    superposes = True

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], init: str) -> None:
        super().__init__(arch, layers, maps)
        self.init = init
        self.masks = self.room()  # T masks (out, in)

    def begin_task(self, device: torch.device) -> None:
        """Add a mask for every map."""
        for i, name in self.places:
            at(self.masks, i, name).add(initial_mask(*self.arch.shape_of(name), self.init, device=device))

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """The mask of a task."""
        return LinearEdit(mask=at(self.masks, layer, name)[task])

    @torch.no_grad()
    def values(self, task: int) -> dict[str, Tensor]:
        """The masks of a task by ``layer.map``."""
        return {f"{i}.{name}": at(self.masks, i, name)[task].detach() for i, name in self.places}


class Scored(Growing):
    """The scores of one weight, and the masks of finished tasks.

    Args:
        shape: (out, in) of the weight.
        keep: share of entries kept.
        kind: "binary", "hybrid" or "soft".
    """

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
        """Make room for a task."""
        if self.kind == "hybrid":
            self.values.add(initial_mask(*self.shape, "uniform", device=self.scores.device))

    def end(self) -> None:
        """Store the binary mask of the task that ends."""
        self.masks = torch.cat([self.masks, keep_largest(self.scores.detach(), self.keep)[None] > 0])

    def mask(self, task: int) -> Tensor:
        """The mask (out, in) of a task, from the scores while it is being learned."""
        kept = self.masks[task].float() if task < len(self.masks) else keep_largest(self.scores, self.keep)
        if self.kind == "hybrid":
            return kept * self.values[task]
        return kept + self.minor * (1 - kept) if self.kind == "soft" else kept


class ScoredMasks(Bank):
    """Masks of the top-scored weights for every task; scores go on from task to task.

    Args:
        arch: sizes of the encoder.
        layers: edited ones.
        maps: edited in each of them.
        keep: share of entries kept per map.
        kind: "binary"; "hybrid" multiplies what is kept by a learned value per task; "soft" leaves a fixed share,
            drawn from U(0, 1), of what is dropped.
    """

    superposes = True

    def __init__(self, arch: Arch, layers: Sequence[int], maps: Sequence[str], keep: float, kind: str) -> None:
        super().__init__(arch, layers, maps)
        self.maps = grouped({(i, name): Scored(arch.shape_of(name), keep, kind) for i, name in self.places})

    def scored(self) -> Iterator[Scored]:
        """The scores of every map."""
        for i, name in self.places:
            yield cast(Scored, at(self.maps, i, name))

    def begin_task(self, device: torch.device) -> None:  # noqa: ARG002 - where the scores are
        """Make room for the task."""
        for weight in self.scored():
            weight.begin()

    def end_task(self) -> None:
        """Store the task's masks."""
        for weight in self.scored():
            weight.end()

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """The mask of a task."""
        return LinearEdit(mask=cast(Scored, at(self.maps, layer, name)).mask(task))


class Factors(Bank):
    """Two factors of rank r of every map for every task: base of low-rank updates and adapters.

    Args:
        arch: sizes of the encoder.
        layers: edited ones.
        maps: edited in each of them.
        rank: r.
    """

    on_output: ClassVar[bool] = False
    """Whether they act on a map's output instead of its input, which decides the width of the first factor."""

    def __init__(
        self, arch: Arch, layers: Sequence[int], maps: Sequence[str], rank: int, *, freeze_old: bool = True
    ) -> None:
        super().__init__(arch, layers, maps, freeze_old=freeze_old)
        self.rank = rank
        self.down, self.up = self.room(), self.room()  # T of (r, width) and of (out, r)

    def begin_task(self, device: torch.device) -> None:
        """Add first factors from U(-1, 1) / sqrt(r width) and second factors of zeros, which change nothing yet."""
        for i, name in self.places:
            out, into = self.arch.shape_of(name)
            width = out if self.on_output else into
            bound = (self.rank * width) ** -0.5
            at(self.down, i, name).add(torch.empty(self.rank, width, device=device).uniform_(-bound, bound))
            at(self.up, i, name).add(torch.zeros(out, self.rank, device=device))


class LowRank(Factors):
    """Low-rank updates ``W + scale B A``.

    Args:
        arch: sizes of the encoder.
        layers: edited ones.
        maps: edited in each of them.
        rank: r.
        scale: factor on B A.
        freeze_old: as for every :class:`Bank`.
    """

    def __init__(
        self,
        arch: Arch,
        layers: Sequence[int],
        maps: Sequence[str],
        rank: int,
        scale: float,
        *,
        freeze_old: bool = True,
    ) -> None:
        super().__init__(arch, layers, maps, rank, freeze_old=freeze_old)
        self.scale = scale

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """The update of a task."""
        a, b = at(self.down, layer, name)[task], at(self.up, layer, name)[task]
        return LinearEdit(down=a, up=self.scale * b)


class Adapters(Factors):
    """Serial bottleneck adapters ``y + U gelu(D y)`` on a map's output."""

    on_output = True

    def edit(self, layer: int, name: str, task: int) -> LinearEdit:
        """The adapter of a task."""
        return LinearEdit(inner=at(self.down, layer, name)[task], outer=at(self.up, layer, name)[task])
