"""Attention against its formula in fp64, in every way it is computed."""

import pytest
import torch

from ostinato.backbones.attention import attend

S, H, N, D = 3, 2, 5, 8


def formula(q, k, v, visible):
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -torch.inf)
    return scores.softmax(-1) @ v


def inputs(keys, dtype, seed=0):
    """Queries, keys and values as a layer has them: heads cut out of a row per token."""
    rng = torch.Generator().manual_seed(seed)
    shapes = (N, keys, keys)
    return [torch.randn(S, n, H, D, generator=rng).to(dtype).transpose(1, 2) for n in shapes]


def masks(keys):
    """None; some keys hidden in some samples; a token sees itself and what comes before, and prefixes."""
    some = torch.ones(S, 1, 1, keys, dtype=torch.bool)
    some[1, ..., -2:] = False
    causal = torch.ones(1, 1, N, keys, dtype=torch.bool).tril(keys - N)
    return {"all": None, "some": some, "causal": causal, "both": some & causal}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seen", list(masks(N)))
@pytest.mark.parametrize("keys", [5, 8, 9, 13, 16, 26, 32])
def test_scores(keys, seen, dtype):
    q, k, v = inputs(keys, dtype)
    visible = masks(keys)[seen]
    got = attend(q, k, v, visible)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        got.double(), formula(*(t.double() for t in (q, k, v)), visible), atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seen", list(masks(N)))
@pytest.mark.parametrize("learn", ["qkv", "kv", "k", "v", "q"])
def test_gradients(learn, seen, dtype):
    """Of those inputs that need one; the others get none."""
    keys = 11
    given = dict(zip("qkv", inputs(keys, dtype), strict=True))
    exact = {name: t.double() for name, t in given.items()}
    for name in learn:
        given[name].requires_grad_()
        exact[name].requires_grad_()
    visible = masks(keys)[seen]
    out = attend(*given.values(), visible)
    want = formula(*exact.values(), visible)
    grad = torch.randn(want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    out.backward(grad)
    want.backward(grad.double())
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(out.double(), want, atol=tolerance, rtol=tolerance)
    for name in "qkv":
        if name in learn:
            torch.testing.assert_close(given[name].grad.double(), exact[name].grad, atol=2 * tolerance, rtol=tolerance)
        else:
            assert given[name].grad is None
