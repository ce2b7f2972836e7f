"""The data types that describe an edit, and the edited linear map, against plain formulas."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.backbones.edits import (
    LINEARS,
    Edit,
    LayerPlan,
    LinearEdit,
    Tokens,
    edited_linear,
    frozen_linear,
    prefix_from,
)
from ostinato.errors import InputError

B, N, IN, OUT, R, T = 3, 5, 6, 4, 2, 2


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.fixture
def linear():
    return draw(B, N, IN, seed=1), draw(OUT, IN, seed=2), draw(OUT, seed=3)


# edited_linear


def test_without_an_edit_it_is_the_plain_map(linear):
    x, w, b = linear
    torch.testing.assert_close(edited_linear(x, w, b, None), x @ w.T + b)
    torch.testing.assert_close(edited_linear(x, w, None, None), x @ w.T)


@pytest.mark.parametrize(
    "edit",
    [
        LinearEdit(),
        LinearEdit(mask=torch.ones(OUT, IN, dtype=torch.float64)),
        LinearEdit(bias=torch.zeros(OUT)),
        LinearEdit(down=draw(R, IN), up=torch.zeros(OUT, R)),
        LinearEdit(down=torch.zeros(R, IN), up=draw(OUT, R)),
    ],
    ids=["empty", "mask of ones", "zero bias", "zero up", "zero down"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_neutral_edits_are_bit_equal_to_none(linear, edit, dtype):
    x, w, b = (t.to(dtype) for t in linear)
    assert torch.equal(edited_linear(x, w, b, edit), edited_linear(x, w, b, None))


def test_all_fields_together(linear):
    x, w, b = linear
    mask, bias, down, up = draw(OUT, IN, seed=4), draw(OUT, seed=5), draw(R, IN, seed=6), draw(OUT, R, seed=7)
    y = edited_linear(x, w, b, LinearEdit(mask=mask, bias=bias, down=down, up=up))
    torch.testing.assert_close(y, x @ (w * mask + up @ down).T + b + bias)


def test_the_mask_does_not_scale_the_low_rank_part_or_the_bias(linear):
    x, w, b = linear
    down, up = draw(R, IN, seed=6), draw(OUT, R, seed=7)
    y = edited_linear(x, w, b, LinearEdit(mask=torch.zeros(OUT, IN), down=down, up=up))
    torch.testing.assert_close(y, x @ (up @ down).T + b)


def test_a_frozen_map_without_bias_gets_one(linear):
    x, w, _ = linear
    bias = draw(OUT, seed=5)
    torch.testing.assert_close(edited_linear(x, w, None, LinearEdit(bias=bias)), x @ w.T + bias)
    mask = draw(B, OUT, IN, seed=4)
    torch.testing.assert_close(edited_linear(x, w, None, LinearEdit(mask=mask))[1], x[1] @ (w * mask[1]).T)


def test_every_sample_has_its_own_mask_and_low_rank(linear):
    x, w, b = linear
    mask, down, up = draw(B, OUT, IN, seed=4), draw(B, R, IN, seed=6), draw(B, OUT, R, seed=7)
    y = edited_linear(x, w, b, LinearEdit(mask=mask, down=down, up=up))
    for i in range(B):
        torch.testing.assert_close(y[i], x[i] @ (w * mask[i] + up[i] @ down[i]).T + b)


def test_every_task_has_its_own_mask_and_low_rank(linear):
    _, w, b = linear
    x = draw(T, B, N, IN, seed=8)
    mask, down, up = draw(T, 1, OUT, IN, seed=4), draw(T, 1, R, IN, seed=6), draw(T, 1, OUT, R, seed=7)
    y = edited_linear(x, w, b, LinearEdit(mask=mask, down=down, up=up))
    assert y.shape == (T, B, N, OUT)
    for t in range(T):
        torch.testing.assert_close(y[t], x[t] @ (w * mask[t, 0] + up[t, 0] @ down[t, 0]).T + b)


def test_masks_near_one_survive_bf16():
    """1.002 is 1 in bf16; the product must be rounded after it is formed, not the mask before."""
    x, w, b = draw(2, 3, 64, dtype=torch.bfloat16), draw(8, 64, seed=1, dtype=torch.bfloat16), None
    mask = torch.full((8, 64), 1.002)
    y = edited_linear(x, w, b, LinearEdit(mask=mask))
    assert y.dtype == torch.bfloat16
    assert not torch.equal(y, F.linear(x, w))
    assert torch.equal(y, F.linear(x, (w.float() * mask).bfloat16()))


def test_gradients_of_every_field(linear):
    x, w, b = linear
    fields = [draw(B, OUT, IN, seed=4), draw(OUT, seed=5), draw(R, IN, seed=6), draw(OUT, R, seed=7)]

    def f(mask, bias, down, up):
        return edited_linear(x, w, b, LinearEdit(mask, bias, down, up))

    assert torch.autograd.gradcheck(f, [t.requires_grad_() for t in fields])


# Tokens


@pytest.mark.parametrize("at", [0, 1, N])
def test_insert_puts_tokens_at_their_position(at):
    h, extra = draw(B, N, IN), draw(B, 2, IN, seed=1)
    out = Tokens(h).insert(extra, at).h
    assert out.shape == (B, N + 2, IN)
    assert torch.equal(out[:, at : at + 2], extra)
    assert torch.equal(torch.cat([out[:, :at], out[:, at + 2 :]], 1), h)


def test_insert_keeps_the_first_token_by_default():
    out = Tokens(draw(B, N, IN)).insert(torch.zeros(B, 2, IN))
    assert torch.equal(out.h[:, 0], draw(B, N, IN)[:, 0])
    assert not out.h[:, 1:3].any()
    assert out.mask is None


def test_insert_shares_one_extra_with_all_samples_and_casts_it():
    h, extra = draw(B, N, IN, dtype=torch.bfloat16), draw(1, 2, IN, seed=1)
    out = Tokens(h).insert(extra).h
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[:, 1:3], extra.bfloat16().expand(B, 2, IN))


def test_inserted_tokens_are_visible_and_the_mask_moves_along():
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 1, 1, 1], [0, 1, 1, 1, 1]], dtype=torch.bool)
    out = Tokens(draw(B, N, IN), mask).insert(draw(1, 2, IN), at=2)
    want = torch.cat([mask[:, :2], torch.ones(B, 2, dtype=torch.bool), mask[:, 2:]], 1)
    assert out.mask.dtype == torch.bool
    assert torch.equal(out.mask, want)


def test_insert_with_a_task_axis():
    h, extra = draw(T, B, N, IN), draw(T, 1, 2, IN, seed=1)
    out = Tokens(h, torch.ones(B, N, dtype=torch.bool)).insert(extra)
    assert out.h.shape == (T, B, N + 2, IN)
    assert out.mask.shape == (B, N + 2)
    for t in range(T):
        assert torch.equal(out.h[t], Tokens(h[t]).insert(extra[t]).h)


@pytest.mark.parametrize("at", [-1, N + 1])
def test_insert_refuses_positions_outside(at):
    with pytest.raises(InputError, match=rf"\[0, {N}\], got {at}"):
        Tokens(draw(B, N, IN)).insert(draw(B, 2, IN), at)


def test_insert_refuses_another_width():
    with pytest.raises(InputError, match=f"width {IN}, got {IN + 1}"):
        Tokens(draw(B, N, IN)).insert(draw(B, 2, IN + 1))


# Descriptions


def test_low_rank_factors_come_in_pairs():
    for half in ({"down": draw(R, IN)}, {"up": draw(OUT, R)}):
        with pytest.raises(InputError, match="down and up must be given together"):
            LinearEdit(**half)


def test_edit_knows_its_maps():
    Edit(linear={name: LinearEdit() for name in LINEARS})
    with pytest.raises(InputError, match=r"'fc3' is no map of a block. Did you mean 'fc[12]'"):
        Edit(linear={"fc3": LinearEdit()})
    with pytest.raises(InputError, match="qkv"):
        Edit(linear={"qkv": LinearEdit()})


def test_a_prefix_mask_needs_a_prefix():
    with pytest.raises(InputError, match="without a prefix"):
        Edit(prefix_mask=torch.ones(B, 2, dtype=torch.bool))


def test_layer_plan():
    low, high = Edit(), Edit(linear={"q": LinearEdit()})
    plan = LayerPlan({5: high, 2: low})
    assert plan.first == 2
    assert plan(2, draw(B, N, IN)) is low
    assert plan(5, draw(B, N, IN)) is high
    assert plan(3, draw(B, N, IN)) is None
    assert LayerPlan({}).first == 0


def test_prefix_from_splits_roles_and_heads():
    prompts = draw(B, 2, 5, 6)
    keys, values = prefix_from(prompts, 3)
    assert keys.shape == values.shape == (B, 3, 5, 2)
    for head in range(3):
        channels = slice(2 * head, 2 * head + 2)
        assert torch.equal(keys[:, head], prompts[:, 0, :, channels])
        assert torch.equal(values[:, head], prompts[:, 1, :, channels])


def test_prefix_from_takes_slices_of_a_larger_tensor():
    pool = draw(B, 4, 2, 5, 6)
    keys, values = prefix_from(pool[:, 1], 3)
    assert torch.equal(keys, prefix_from(pool[:, 1].clone(), 3)[0])
    assert torch.equal(values, prefix_from(pool[:, 1].clone(), 3)[1])


@pytest.mark.parametrize("shape", [(B, 3, 5, 6), (B, 2, 5, 7)])
def test_prefix_from_refuses_other_shapes(shape):
    with pytest.raises(InputError, match=r"multiple of 3 heads, got \(3, "):
        prefix_from(draw(*shape), 3)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_linear_map_in_bf16_equals_the_plain_one(gelu: bool, trained: bool):
    rng = torch.Generator().manual_seed(0)
    x, w, b = (torch.randn(*shape, generator=rng).bfloat16() for shape in ((3, 5, 16), (24, 16), (24,)))
    x.requires_grad_(trained)
    y = frozen_linear(x, w, b, gelu=gelu)
    exact = torch.nn.functional.linear(x.float(), w.float(), b.float())
    exact = torch.nn.functional.gelu(exact) if gelu else exact
    assert (y.float() - exact).abs().max() <= 2**-7 * exact.abs().max()
    if trained:
        d = torch.randn(y.shape, generator=rng).bfloat16()
        (ours,) = torch.autograd.grad(y, x, d)
        (theirs,) = torch.autograd.grad(exact, x, d.float())
        assert (ours.float() - theirs.float()).abs().max() <= 2**-6 * theirs.float().abs().max()


def test_a_weight_that_trains_gets_its_gradient_in_bf16():
    x, w, b = (torch.randn(*shape).bfloat16() for shape in ((3, 5, 16), (24, 16), (24,)))
    w.requires_grad_(True)
    frozen_linear(x, w, b).sum().backward()
    assert w.grad is not None
    assert w.grad.abs().sum() > 0


def test_a_fingerprint_depends_on_every_value_and_place():
    def plan(layer=2, name="q", up=1.0, keys=0.0, seen=True):
        factors = {"down": torch.ones(1, 4), "up": torch.full((4, 1), up)}
        prefix = torch.full((1, 2, 3, 2), keys), torch.zeros(1, 2, 3, 2)
        mask = torch.tensor([[seen, True, True]])
        edit = Edit(prefix=prefix, prefix_mask=mask, linear={name: LinearEdit(**factors)})
        return LayerPlan({layer: edit, 5: Edit()}).fingerprint()

    assert plan() == plan()
    others = [
        plan(layer=3),
        plan(name="v"),
        plan(up=1.5),
        plan(keys=1.0),
        plan(seen=False),
        LayerPlan({}).fingerprint(),
    ]
    assert len({plan(), *others}) == 7


def test_an_adapter_has_no_fingerprint():
    with pytest.raises(InputError, match="the edit of layer 1 has an adapter"):
        LayerPlan({1: Edit(adapter=torch.relu)}).fingerprint()
