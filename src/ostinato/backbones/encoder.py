"""The package's only transformer: an encoder whose layers accept edits per call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones.attention import attend
from ostinato.backbones.edits import Affine, Edit, Plan, Tokens, edited_linear, edited_output, frozen_linear
from ostinato.errors import InputError

ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "relu": F.relu}


@dataclass(frozen=True)
class Arch:
    """Sizes of an encoder.

    Attributes:
        dim: width D.
        depth: number of blocks; layers are numbered 0 to depth - 1.
        heads: attention heads H, a divisor of ``dim``.
        mlp_dim: hidden width of the MLP.
        eps: epsilon of the layer norms.
        act: activation of the MLP, a key of ``ACTIVATIONS``.
        qkv_bias: whether queries, keys and values have a bias.
        layer_scale: whether each residual branch has a learned scale per channel.
        norm: "pre" normalises the input of a branch, with a final norm after all layers (ViT, CLIP); "post" normalises
            the sum of a branch and its residual, so that the states that leave a layer are normalised (BERT).
        causal: whether a token attends to itself and earlier ones only (CLIP's text tower), beside all prefixes.
    """

    dim: int
    depth: int
    heads: int
    mlp_dim: int
    eps: float = 1e-6
    act: str = "gelu"
    qkv_bias: bool = True
    layer_scale: bool = False
    norm: str = "pre"
    causal: bool = False

    def __post_init__(self) -> None:
        """Check the sizes."""
        if min(self.dim, self.depth, self.heads, self.mlp_dim) < 1:
            raise InputError(f"Arch: dim, depth, heads and mlp_dim must be at least 1, got {self}.")
        if self.dim % self.heads:
            raise InputError(f"Arch: dim ({self.dim}) must be a multiple of heads ({self.heads}).")
        if self.act not in ACTIVATIONS:
            raise InputError(f"Arch: act must be one of {sorted(ACTIVATIONS)}, got {self.act!r}.")
        if self.norm not in ("pre", "post"):
            raise InputError(f"Arch: norm must be 'pre' or 'post', got {self.norm!r}.")

    def shape_of(self, name: str) -> tuple[int, int]:
        """Shape (out, in) of the weight of a linear map that a ``LinearEdit`` may name."""
        if name == "fc1":
            return self.mlp_dim, self.dim
        return (self.dim, self.mlp_dim) if name == "fc2" else (self.dim, self.dim)


class Attention(nn.Module):
    """Multi-head self-attention with optional key/value prefixes and edited projections."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.heads, self.causal = arch.heads, arch.causal
        self.qkv = nn.Linear(arch.dim, 3 * arch.dim, bias=arch.qkv_bias)
        self.proj = nn.Linear(arch.dim, arch.dim)

    def forward(self, x: Tensor, mask: Tensor | None, edit: Edit, read: slice | None = None) -> Tensor:
        """Attend over N tokens and P prefix positions.

        Args:
            x: (..., N, D), the input of the branch.
            mask: (B, N) bool, True for real tokens, or None.
            edit: of this layer.
            read: positions of the output; None for all.

        Returns:
            (..., N, D), or the positions of ``read``.
        """
        *lead, n, d = x.shape
        q, k, v = self._project(x, edit, read)
        if edit.prefix is not None:
            k, v = (
                torch.cat([_lead(p.to(x.dtype), lead), t], dim=-2) for p, t in zip(edit.prefix, (k, v), strict=True)
            )
        visible = self._visible(mask, edit, n, k, read)
        q, k, v = (t.reshape(-1, *t.shape[-3:]) for t in (q, k, v))  # tasks and samples in one axis
        out = attend(q, k, v, visible)
        out = out.transpose(1, 2).reshape(*lead, -1, d)
        return edited_linear(out, self.proj.weight, self.proj.bias, edit.linear.get("proj"))

    def weights(self, x: Tensor, mask: Tensor | None, edit: Edit, read: slice | None = None) -> Tensor:
        """Attention weights of :meth:`forward` under the same arguments; the fused kernels do not return them.

        Returns:
            (..., H, n, P + N) in fp32 for the n positions of ``read``, prefix before tokens; each row sums to 1.
        """
        *lead, n, _ = x.shape
        q, k, _ = self._project(x, edit, read)
        if edit.prefix is not None:
            k = torch.cat([_lead(edit.prefix[0].to(x.dtype), lead), k], dim=-2)
        scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().mT
        visible = self._visible(mask, edit, n, k, read)
        if visible is not None:
            scores = scores.masked_fill(
                ~visible.expand(math.prod(lead), *visible.shape[1:]).unflatten(0, lead), -torch.inf
            )
        return scores.softmax(-1)

    def _project(self, x: Tensor, edit: Edit, read: slice | None = None) -> list[Tensor]:
        """Queries, keys and values, each (..., H, N, D / H), in one product where masks and ``read`` permit it."""
        edits = [edit.linear.get(name) for name in "qkv"]
        inputs = (x if read is None else x[..., read, :], x, x)
        if any(e is not None and e.mask is not None for e in edits):
            parts = [edited_linear(t, *self.part(i), e) for i, (t, e) in enumerate(zip(inputs, edits, strict=True))]
        else:
            if read is None:
                plain = frozen_linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
            else:
                d, bias = x.shape[-1], self.qkv.bias
                keys_values = frozen_linear(x, self.qkv.weight[d:], None if bias is None else bias[d:])
                plain = (frozen_linear(inputs[0], *self.part(0)), *keys_values.chunk(2, dim=-1))
            weights = self.qkv.weight.chunk(3)
            parts = [edited_output(*each) for each in zip(plain, inputs, weights, edits, strict=True)]
        return [p.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for p in parts]

    def _visible(self, mask: Tensor | None, edit: Edit, n: int, k: Tensor, read: slice | None) -> Tensor | None:
        """Mask of visible keys (..., H, P + N, d), as (samples | 1, 1, n | 1, P + N); None where all are visible."""
        seen = _visible(mask, edit, n, k.shape[-2], tuple(k.shape[:-3]))
        if not self.causal:
            return seen
        before = torch.ones(n, k.shape[-2], dtype=torch.bool, device=k.device).tril(k.shape[-2] - n)
        before = before[slice(None) if read is None else read][None, None]
        return before if seen is None else before & seen

    def part(self, i: int) -> tuple[Tensor, Tensor | None]:
        """Weight (D, D) and bias (D,) of the queries (0), keys (1) or values (2)."""
        bias = self.qkv.bias.chunk(3)[i] if self.qkv.bias is not None else None
        return self.qkv.weight.chunk(3)[i], bias


def _lead(prefix: Tensor, lead: list[int]) -> Tensor:
    """Expand a prefix (B | 1, H, P, d) to the tokens' leading axes."""
    return prefix.expand(*lead, *prefix.shape[-3:])


def _visible(mask: Tensor | None, edit: Edit, n: int, n_keys: int, lead: tuple[int, ...]) -> Tensor | None:
    """Visible keys as (samples, 1, 1, P + N) bool; None where all are visible."""
    if mask is None and edit.prefix_mask is None:
        return None
    batch, p = lead[-1], n_keys - n
    like = mask if mask is not None else edit.prefix_mask
    ones = torch.ones(batch, max(n, p), dtype=torch.bool, device=like.device if like is not None else None)
    left = ones[:, :p] if edit.prefix_mask is None else edit.prefix_mask.expand(batch, p)
    right = ones[:, :n] if mask is None else mask
    keys = torch.cat([left, right], dim=1)
    return keys.expand(*lead, n_keys).reshape(-1, 1, 1, n_keys)


class MLP(nn.Module):
    """Two linear maps with an activation between them."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.fc1 = nn.Linear(arch.dim, arch.mlp_dim)
        self.fc2 = nn.Linear(arch.mlp_dim, arch.dim)
        self.act = ACTIVATIONS[arch.act]

    def forward(self, x: Tensor, edit: Edit) -> Tensor:
        """(..., N, D) to (..., N, D)."""
        if self.act is F.gelu and "fc1" not in edit.linear:
            x = frozen_linear(x, self.fc1.weight, self.fc1.bias, gelu=True)
        else:
            x = self.act(edited_linear(x, self.fc1.weight, self.fc1.bias, edit.linear.get("fc1")))
        return edited_linear(x, self.fc2.weight, self.fc2.bias, edit.linear.get("fc2"))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return x * self.gamma


class Block(nn.Module):
    """One layer: attention, then MLP, each added to the residual stream, with norms before or after each."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(arch.dim, eps=arch.eps)
        self.attn = Attention(arch)
        self.norm2 = nn.LayerNorm(arch.dim, eps=arch.eps)
        self.mlp = MLP(arch)
        self.ls1 = LayerScale(arch.dim) if arch.layer_scale else nn.Identity()
        self.ls2 = LayerScale(arch.dim) if arch.layer_scale else nn.Identity()
        self.post = arch.norm == "post"

    def forward(
        self, h: Tensor, mask: Tensor | None = None, edit: Edit | None = None, read: slice | None = None
    ) -> Tensor:
        """Advance the residual stream (..., N, D) by one layer, at the positions ``read`` alone if given."""
        edit = edit or PLAIN
        kept = h if read is None else h[..., read, :]
        h = kept + self.ls1(self.attn(self.attention_input(h, edit), mask, edit, read))
        if self.post:
            h = _scaled(self.norm1(h), edit.norm1)
        out = self.ls2(self.mlp(h if self.post else _scaled(self.norm2(h), edit.norm2), edit))
        if edit.adapter is not None:
            out = out + edit.adapter(h).to(h.dtype)
        return _scaled(self.norm2(h + out), edit.norm2) if self.post else h + out

    def attention_input(self, h: Tensor, edit: Edit | None = None) -> Tensor:
        """Input of attention for the states (..., N, D) that enter the layer."""
        return h if self.post else _scaled(self.norm1(h), edit.norm1 if edit is not None else None)


def _scaled(x: Tensor, affine: Affine | None) -> Tensor:
    """A norm's output under its edit."""
    return x if affine is None else x * affine.scale.to(x.dtype) + affine.shift.to(x.dtype)


PLAIN = Edit()


class Encoder(nn.Module):
    """A stack of blocks, with a final norm where blocks normalise before their branches."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.blocks = nn.ModuleList(Block(arch) for _ in range(arch.depth))
        self.norm = nn.LayerNorm(arch.dim, eps=arch.eps) if arch.norm == "pre" else nn.Identity()

    def run(
        self,
        tokens: Tokens,
        plan: Plan | None = None,
        *,
        start: int = 0,
        stop: int | None = None,
        read: slice | None = None,
    ) -> Tokens:
        """Run layers ``start`` to ``stop`` - 1, each with its edit of the plan.

        Args:
            tokens: states that enter layer ``start``.
            plan: edits per layer; None runs the plain encoder.
            start: first layer, counted from 0.
            stop: layer to stop before; None for the depth.
            read: positions to compute in the last layer run; the keys and values of the others still take part. None
                for all.

        Returns:
            The states that leave layer ``stop`` - 1, without the final norm.

        Raises:
            InputError: if the range is outside [0, depth].
        """
        stop = self.arch.depth if stop is None else stop
        if not 0 <= start <= stop <= self.arch.depth:
            raise InputError(f"run: 0 <= start <= stop <= {self.arch.depth} must hold, got {start} and {stop}.")
        h = tokens.h
        for layer in range(start, stop):
            edit = plan(layer, Tokens(h, tokens.mask)) if plan is not None else None
            h = self.blocks[layer](h, tokens.mask, edit, read if layer == stop - 1 else None)
        if read is None or start == stop:
            return Tokens(h, tokens.mask)
        return Tokens(h, None if tokens.mask is None else tokens.mask[:, read])

    def weight(self, layer: int, name: str) -> Tensor:
        """Weight (out, in) of a linear map of a layer that a ``LinearEdit`` may name."""
        block = cast(Block, self.blocks[layer])
        if name in "qkv":
            return block.attn.part("qkv".index(name))[0]
        maps: dict[str, nn.Linear] = {"proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        return maps[name].weight

    def queries(self, layer: int, h: Tensor) -> Tensor:
        """Queries (..., N, D) of a layer for the states (..., N, D) that enter it, heads joined."""
        block = cast(Block, self.blocks[layer])
        return F.linear(block.attention_input(h), *block.attn.part(0))

    def attention_input(self, layer: int, h: Tensor) -> Tensor:
        """Input (..., N, D) of a layer's attention for the states (..., N, D) that enter the layer."""
        return cast(Block, self.blocks[layer]).attention_input(h)

    def keys_values(self, layer: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer, each (..., N, D), for the states (..., N, D) that enter it, heads joined."""
        block = cast(Block, self.blocks[layer])
        x = block.attention_input(h.to(block.attn.qkv.weight.dtype))
        return F.linear(x, *block.attn.part(1)), F.linear(x, *block.attn.part(2))
