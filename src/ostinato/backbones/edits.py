"""Edits of a layer in one call, given as data.

Methods describe prefixes, masks, low-rank updates and adapters with the types below and pass them to ``Backbone.run``;
they contain no transformer code. Nothing is stored on the modules, so nothing outlives the call. Shape letters: B
batch, N tokens, D width, H heads, P prefix length, T tasks, r rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.errors import InputError, did_you_mean

LINEARS = ("q", "k", "v", "proj", "fc1", "fc2")
"""Linear maps of a block, by the names for :class:`LinearEdit`."""


class Tokens(NamedTuple):
    """Token states of one batch, of any modality.

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

    def without(self, at: int, n: int) -> Tokens:
        """Drop the ``n`` positions from ``at`` on."""
        h = torch.cat([self.h[..., :at, :], self.h[..., at + n :, :]], dim=-2)
        return Tokens(h, None if self.mask is None else torch.cat([self.mask[:, :at], self.mask[:, at + n :]], dim=1))

    def take(self, rows: Tensor | slice) -> Tokens:
        """Select samples of states (B, N, D)."""
        return Tokens(self.h[rows], None if self.mask is None else self.mask[rows])

    def after(self, n: int) -> Tokens:
        """Drop the first ``n`` positions."""
        return Tokens(self.h[..., n:, :], None if self.mask is None else self.mask[:, n:])

    def under(self, n_tasks: int) -> Tokens:
        """Expand states (B, N, D) to (T, B, N, D), the same for each of ``n_tasks`` tasks, without a copy."""
        return Tokens(self.h.expand(n_tasks, *self.h.shape), self.mask)

    def real(self) -> Tensor:
        """States (n, D) of all real tokens."""
        return self.h.flatten(0, -2) if self.mask is None else self.h[self.mask]


@dataclass(frozen=True)
class LinearEdit:
    """A changed map: ``y = scale (x (W * mask)^T + b) + bias + (x down^T) up^T``, then ``y + gelu(y inner^T) outer^T``.

    Shapes are those of one shared edit. Leading axes batch it: ``(B, out, in)`` gives every sample its own
    weights on (B, N, in) inputs, ``(T, 1, out, in)`` every task on (T, B, N, in) inputs; the same holds for
    the factors.

    Attributes:
        mask: (out, in), multiplies the frozen weight.
        bias: (out,), added to the frozen bias after ``scale``.
        down: (r, in), the first factor of a low-rank update.
        up: (out, r), the second factor, any scale included.
        inner: (r, out), the first factor of a bottleneck adapter on the map's output (serial adapter).
        outer: (out, r), its second factor.
        mask_coefficients: (B, S) zeros, without effect on the output; after the backward pass its gradient is, for
            each sample, the derivative of the loss with respect to the coefficients of ``mask_basis`` in the mask.
        mask_basis: (S, out, in), directions of these coefficients, added to the mask.
        scale: (out,), multiplies the output of the frozen or masked map.
    """

    mask: Tensor | None = None
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    inner: Tensor | None = None
    outer: Tensor | None = None
    mask_coefficients: Tensor | None = None
    mask_basis: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        """Check that the two factors of an update are both given."""
        for first, second in (("down", "up"), ("inner", "outer"), ("mask_coefficients", "mask_basis")):
            if (getattr(self, first) is None) != (getattr(self, second) is None):
                raise InputError(f"LinearEdit: {first} and {second} must be given together; one of them is None.")


@cache
def fused_bf16() -> bool:
    """Whether this CPU has bf16 instructions, which the fused kernel requires."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """``x weight^T + bias``, then GELU if requested; on a CPU in bf16, a frozen weight and its bias are one kernel.

    ``F.linear`` writes the bias into the result before it multiplies, and GELU reads and writes it once more: a tenth
    of the time of a pass. The fused kernel, which torch's own compiler uses, also rounds once instead of twice. GELU
    stays separate where a gradient needs its input.
    """
    fused = (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.bfloat16
        and bias is not None
        and x.is_contiguous()
        and not torch.compiler.is_compiling()
        and fused_bf16()
        and not (torch.is_grad_enabled() and weight.requires_grad)
    )
    if fused and torch.is_grad_enabled() and x.requires_grad:
        y = cast(Tensor, _Frozen.apply(x, weight, bias))
    elif fused:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
    else:
        y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


class _Frozen(torch.autograd.Function):
    """A linear map with frozen weight and bias, in one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "none")

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ ctx.saved_tensors[0], None, None


def edited_linear(x: Tensor, weight: Tensor, bias: Tensor | None, edit: LinearEdit | None) -> Tensor:
    """Apply a frozen linear map with an optional edit, in the dtype of ``x``.

    Args:
        x: (..., N, in).
        weight: (out, in), frozen.
        bias: (out,) or None.
        edit: its tensors are cast to the dtype of ``x``; None for none.

    Returns:
        (..., N, out).
    """
    if edit is None or edit.mask is None:
        return edited_output(frozen_linear(x, weight, bias), x, weight, edit)
    # The product is formed in the mask's precision: masks live within a few percent of 1, where bf16
    # would round most of what was learned away.
    masked = (weight * edit.mask).to(x.dtype)
    y = F.linear(x, masked, bias) if masked.ndim == 2 else _times(x, masked)
    if masked.ndim > 2 and bias is not None:
        y = y + bias
    return edited_output(y, x, weight, edit)


def edited_output(y: Tensor, x: Tensor, weight: Tensor, edit: LinearEdit | None) -> Tensor:
    """Apply all of an edit but its mask to the output y (..., N, out) of a linear map of x (..., N, in)."""
    if edit is None:
        return y
    if edit.scale is not None:
        y = y * edit.scale.to(x.dtype)
    if edit.bias is not None:
        y = y + edit.bias.to(x.dtype)
    if edit.down is not None and edit.up is not None:
        y = y + _times(_times(x, edit.down.to(x.dtype)), edit.up.to(x.dtype))
    if edit.mask_coefficients is not None and edit.mask_basis is not None:
        y = _MaskGradient.apply(y, x, edit.mask_coefficients, weight * edit.mask_basis)
    if edit.inner is not None and edit.outer is not None:
        y = y + _times(F.gelu(_times(y, edit.inner.to(x.dtype))), edit.outer.to(x.dtype))
    return y


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """``x weight^T``; a weight per task (T, 1, out, in) meets all samples of its task in one product, uncopied."""
    if x.ndim == weight.ndim == 4 and weight.shape[1] == 1:
        return (x.flatten(1, 2) @ weight[:, 0].mT).unflatten(1, x.shape[1:3])
    return x @ weight.mT


def per_task(edits: Sequence[LinearEdit]) -> LinearEdit:
    """Stack edits of one map under T tasks into one with leading axes (T, 1), for states (T, B, N, in)."""

    def join(name: str) -> Tensor | None:
        parts = [getattr(edit, name) for edit in edits]
        return None if parts[0] is None else torch.stack(parts)[:, None]

    if any(part is not None for part in (edits[0].scale, edits[0].bias, edits[0].mask_coefficients)):
        raise InputError("per_task: edits with a scale, a bias or mask coefficients cannot be joined.")
    return LinearEdit(**{name: join(name) for name in ("mask", "down", "up", "inner", "outer")})


class _MaskGradient(torch.autograd.Function):
    """The identity on ``y`` with a gradient for mask coefficients c: that of ``y + sum_s c[:, s] x mask_basis[s]^T``.

    With x and the gradient d of y, the weight gradient of sample b is d_b^T x_b, and the derivative along a direction
    is its inner product with that gradient. All directions of the basis share one product, so that the cost does not
    grow by a pass per direction, and the forward pass forms no weight per sample.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, mask_coefficients: Tensor, mask_basis: Tensor) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(x, mask_basis)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (d,) = grads
        x, mask_basis = ctx.saved_tensors
        flat = mask_basis.flatten(1).float()
        # A chunk of samples at a time: the product has out x in numbers for each sample.
        size = max(1, 2**25 // flat.shape[1])
        rows = [
            (dd.float().mT @ xx.float()).flatten(1) @ flat.T
            for dd, xx in zip(d.split(size), x.split(size), strict=True)
        ]
        return d, None, torch.cat(rows), None


class Affine(NamedTuple):
    """A scale (D,) and a shift (D,) of the output of a norm."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Bottleneck:
    """An adapter beside the MLP: ``relu(h down^T + down_bias) up^T + up_bias``.

    Leading axes batch it as those of :class:`LinearEdit`: (T, 1, r, D) on states (T, B, N, D).

    Attributes:
        down: (r, D).
        up: (D, r), any scale included.
        down_bias: (r,).
        up_bias: (D,), any scale included.
        dropout: share of the r hidden numbers that are set to 0, drawn from torch's global generator.
    """

    down: Tensor
    up: Tensor
    down_bias: Tensor
    up_bias: Tensor
    dropout: float = 0.0

    def __call__(self, h: Tensor) -> Tensor:
        """(..., N, D) to (..., N, D), in the dtype of ``h``."""
        hidden = F.relu(_times(h, self.down.to(h.dtype)) + self.down_bias[..., None, :].to(h.dtype))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout)
        return _times(hidden, self.up.to(h.dtype)) + self.up_bias[..., None, :].to(h.dtype)


@dataclass(frozen=True)
class Edit:
    """All edits of one layer in one call.

    Attributes:
        prefix: key and value prefixes, each (B | 1, H, P, D / H), or with the tokens' leading axes; joined
            after the projections, so that the sequence keeps its length (prefix tuning).
        prefix_mask: (B, P) bool, False where a prefix position is absent; an absent prefix is masked out of
            the softmax, because a zero key would still take its share.
        linear: changed linear maps by name, see ``LINEARS``.
        adapter: runs beside the MLP on the residual stream that enters it, (..., N, D) to (..., N, D); its
            output is added to the MLP's.
        norm1: scale and shift of the output of the layer's first norm.
        norm2: scale and shift of the output of its second norm.
    """

    prefix: tuple[Tensor, Tensor] | None = None
    prefix_mask: Tensor | None = None
    linear: Mapping[str, LinearEdit] = field(default_factory=dict)
    adapter: Callable[[Tensor], Tensor] | None = None
    norm1: Affine | None = None
    norm2: Affine | None = None

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
        """Lowest layer that may be edited; all below it equals the plain pass."""
        ...

    def __call__(self, layer: int, tokens: Tokens) -> Edit | None:
        """Edit of ``layer`` (0-based) for the states (..., N, D) that enter it, or None."""
        ...


@dataclass(frozen=True)
class LayerPlan:
    """A plan fixed before the pass: edits by layer number, counted from 0."""

    edits: Mapping[int, Edit]

    @property
    def first(self) -> int:
        """Lowest edited layer; 0 for an empty plan."""
        return min(self.edits, default=0)

    def __call__(self, layer: int, tokens: Tokens) -> Edit | None:  # noqa: ARG002 - plans may read the states
        """Edit of ``layer``, independent of the states."""
        return self.edits.get(layer)

    def fingerprint(self) -> bytes:
        """Hash of all edits, equal for equal values.

        Raises:
            InputError: if an edit has an adapter that is a function; a :class:`Bottleneck` has values.
        """
        digest = hashlib.blake2b(digest_size=16)
        for layer, edit in sorted(self.edits.items()):
            parts: dict[str, Tensor | None] = {"prefix_mask": edit.prefix_mask}
            if isinstance(edit.adapter, Bottleneck):
                names = ("down", "up", "down_bias", "up_bias")
                parts |= {f"adapter.{name}": getattr(edit.adapter, name) for name in names}
            elif edit.adapter is not None:
                raise InputError(f"LayerPlan.fingerprint: the edit of layer {layer} has an adapter, which has no hash.")
            parts |= dict(zip(("keys", "values"), edit.prefix or (), strict=False))
            for norm, affine in (("norm1", edit.norm1), ("norm2", edit.norm2)):
                parts |= {f"{norm}.{key}": value for key, value in (affine._asdict() if affine else {}).items()}
            parts |= {f"{name}.{f.name}": getattr(m, f.name) for name, m in edit.linear.items() for f in fields(m)}
            for name, tensor in sorted(parts.items()):
                if tensor is not None:
                    digest.update(f"{layer}.{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
                    digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.digest()


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
    keys, values = prompts.reshape(b, 2, p, heads, d // heads).transpose(2, 3).unbind(1)
    # One memory layout for all inputs: compiled layers would need a graph for each.
    return keys.contiguous(), values.contiguous()
