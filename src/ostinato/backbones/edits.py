"""What one layer does differently in one call, given as data.

A method never contains transformer code: it describes prefixes, masks, low-rank updates and adapters with
the types below and passes them to ``Backbone.run``. Nothing is stored on the modules, so nothing outlives
the call. Shape letters: B batch, N tokens, D width, H heads, P prefix length, T tasks, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError, did_you_mean

LINEARS = ("q", "k", "v", "proj", "fc1", "fc2")
"""Linear maps of a block that a :class:`LinearEdit` may name."""


class Tokens(NamedTuple):
    """Token states of one batch, the one type that every modality shares.

    ``h`` is (..., N, D) with one or more leading axes; ``mask`` is (B, N) bool, True where a token is real,
    or None when all are.
    """

    h: Tensor
    mask: Tensor | None = None

    def insert(self, extra: Tensor, at: int = 1) -> Tokens:
        """Insert tokens before position ``at``.

        Args:
            extra: (B | 1, P, D); cast to the dtype of the tokens. Inserted tokens are always visible.
            at: position of the first inserted token; 1 keeps the CLS token first.

        Returns:
            Tokens with N + P positions.

        Raises:
            InputError: if ``at`` is outside the sequence or the width differs.
        """
        n, d = self.h.shape[-2:]
        if not 0 <= at <= n:
            raise InputError(f"Tokens.insert: at must lie in [0, {n}], got {at}.")
        if extra.shape[-1] != d:
            raise InputError(f"Tokens.insert: extra must have width {d}, got {extra.shape[-1]}.")
        lead = self.h.shape[:-2]
        new = extra.to(self.h.dtype).expand(*lead, *extra.shape[-2:])
        h = torch.cat([self.h[..., :at, :], new, self.h[..., at:, :]], dim=-2)
        if self.mask is None:
            return Tokens(h)
        seen = self.mask.new_ones(self.mask.shape[0], extra.shape[-2])
        return Tokens(h, torch.cat([self.mask[:, :at], seen, self.mask[:, at:]], dim=1))


@dataclass(frozen=True)
class LinearEdit:
    """A changed linear map: ``y = x (W * mask)^T + b + bias + (x down^T) up^T``.

    Shapes are those of one shared edit. Leading axes batch it: ``(B, out, in)`` gives every sample its own
    weights on (B, N, in) inputs, ``(T, 1, out, in)`` every task on (T, B, N, in) inputs; the same holds for
    ``down`` and ``up``.

    Attributes:
        mask: (out, in), multiplies the frozen weight.
        bias: (out,), added to the frozen bias.
        down: (r, in), the first factor of a low-rank update.
        up: (out, r), the second factor, any scale included.
    """

    mask: Tensor | None = None
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that low-rank factors come in pairs."""
        if (self.down is None) != (self.up is None):
            raise InputError("LinearEdit: down and up must be given together; one of them is None.")


def edited_linear(x: Tensor, weight: Tensor, bias: Tensor | None, edit: LinearEdit | None) -> Tensor:
    """Apply a frozen linear map with an optional edit, in the dtype of ``x``.

    Args:
        x: (..., N, in).
        weight: (out, in), frozen.
        bias: (out,) or None.
        edit: what differs in this call; its tensors are cast to the dtype of ``x``.

    Returns:
        (..., N, out).
    """
    if edit is None:
        return F.linear(x, weight, bias)
    if edit.mask is None:
        y = F.linear(x, weight, bias)
    else:
        # The product is formed in the mask's precision: masks live within a few percent of 1, where bf16
        # would round most of what was learned away.
        masked = (weight * edit.mask).to(x.dtype)
        y = F.linear(x, masked, bias) if masked.ndim == 2 else x @ masked.mT
        if masked.ndim > 2 and bias is not None:
            y = y + bias
    if edit.bias is not None:
        y = y + edit.bias.to(x.dtype)
    if edit.down is not None and edit.up is not None:
        y = y + (x @ edit.down.to(x.dtype).mT) @ edit.up.to(x.dtype).mT
    return y


@dataclass(frozen=True)
class Edit:
    """Everything one layer does differently in one call.

    Attributes:
        prefix: key and value prefixes, each (B | 1, H, P, D / H), or with the tokens' leading axes; joined
            after the projections, so that the sequence keeps its length (prefix tuning).
        prefix_mask: (B, P) bool, False where a prefix position is absent; an absent prefix is masked out of
            the softmax, because a zero key would still take its share.
        linear: changed linear maps by name, see ``LINEARS``.
        adapter: runs beside the MLP on the residual stream that enters it, (..., N, D) to (..., N, D); its
            output is added to the MLP's.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    prefix_mask: Tensor | None = None
    linear: Mapping[str, LinearEdit] = field(default_factory=dict)
    adapter: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the names of the edited maps."""
        for name in self.linear:
            if name not in LINEARS:
                raise InputError(f"Edit.linear: {name!r} is no map of a block. {did_you_mean(name, LINEARS)}")
        if self.prefix_mask is not None and self.prefix is None:
            raise InputError("Edit.prefix_mask is given without a prefix to mask.")


class Plan(Protocol):
    """The edits of one call, layer by layer."""

    @property
    def first(self) -> int:
        """The lowest layer that may be edited; everything below it equals the plain pass."""
        ...

    def __call__(self, layer: int, h: Tensor) -> Edit | None:
        """The edit of ``layer`` (0-based), given the state (..., N, D) that enters it; None for none."""
        ...


@dataclass(frozen=True)
class LayerPlan:
    """A plan that is known before the pass: edits by layer number, counted from 0."""

    edits: Mapping[int, Edit]

    @property
    def first(self) -> int:
        """The lowest edited layer; 0 for an empty plan."""
        return min(self.edits, default=0)

    def __call__(self, layer: int, h: Tensor) -> Edit | None:  # noqa: ARG002 - plans may read the state
        """The edit of ``layer``, whatever the state."""
        return self.edits.get(layer)


def prefix_from(prompts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Split prompts into per-head key and value prefixes.

    Args:
        prompts: (B | 1, 2, P, D); index 0 of the second axis holds keys, index 1 values.
        heads: number of attention heads H, a divisor of D.

    Returns:
        Keys and values, each (B | 1, H, P, D / H).
    """
    b, two, p, d = prompts.shape
    if two != 2 or d % heads:
        raise InputError(
            f"prefix_from: prompts must be (B, 2, P, D) with D a multiple of {heads} heads, got {tuple(prompts.shape)}."
        )
    keys, values = prompts.view(b, 2, p, heads, d // heads).transpose(2, 3).unbind(1)
    return keys, values
