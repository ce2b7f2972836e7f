"""Attention by the fastest kernel for the device and precision."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None) -> Tensor:
    """``softmax(q k^T / sqrt(d)) v``.

    Args:
        q: queries (S, H, N, d).
        k: keys (S, H, M, d).
        v: values (S, H, M, d).
        visible: bool (S | 1, 1, N | 1, M), True for keys that a query sees; None for all.

    Returns:
        (S, H, N, d).
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return cast(Tensor, _Attention.apply(q, k, v, visible))
    if (over := k.shape[-2] % 16) > 8 and not torch.compiler.is_compiling():
        # The fused kernel takes half as long again for 9 to 15 keys beyond a multiple of 16 as for all 16.
        if visible is None:
            visible = torch.ones(1, 1, 1, k.shape[-2], dtype=torch.bool)
        k, v = (F.pad(t, (0, 0, 0, 16 - over)) for t in (k, v))
        visible = F.pad(visible, (0, 16 - over))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


class _Attention(torch.autograd.Function):
    """Attention with a gradient on CPUs in bf16, where the fused kernel's backward pass takes several times as long.

    Written as plain matrix products, autograd would copy queries and keys more often and scale the queries in a
    separate pass.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        lead, ctx.scale = q.shape[:2], q.shape[-1] ** -0.5
        q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (q, k, v))
        weights = _scaled(q, k.mT, ctx.scale)
        if visible is not None:
            weights.unflatten(0, lead).masked_fill_(~visible, -torch.inf)
        weights = weights.softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).unflatten(0, lead)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        lead, grad = grads[0].shape[:2], grads[0].reshape(q.shape)
        of_q, of_k, of_v, _ = ctx.needs_input_grad
        dq = dk = dv = None
        if of_v:
            dv = torch.bmm(weights.mT, grad).unflatten(0, lead)
        if of_q or of_k:
            scores = torch.ops.aten._softmax_backward_data(torch.bmm(grad, v.mT), weights, -1, weights.dtype)
            dq = _scaled(scores, k, ctx.scale).unflatten(0, lead) if of_q else None
            dk = _scaled(scores.mT, q, ctx.scale).unflatten(0, lead) if of_k else None
        return dq, dk, dv, None


def _scaled(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale a b`` of stacked matrices as one product."""
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)
