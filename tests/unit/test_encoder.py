"""The encoder under edits against oracles: replaced weights, hand-written attention, loops over tasks and samples."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from ostinato.backbones import (
    Arch,
    Edit,
    Encoder,
    LayerPlan,
    LinearEdit,
    Preprocess,
    Tokens,
    VisionBackbone,
    prefix_from,
)
from ostinato.backbones.edits import LINEARS
from ostinato.backbones.encoder import ACTIVATIONS, Block
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError

B, P, T, D, H, DEPTH = 3, 4, 2, 16, 2, 3
N = 5  # CLS and the four patches of an 8x8 image
SHAPES = {"q": (D, D), "k": (D, D), "v": (D, D), "proj": (D, D), "fc1": (2 * D, D), "fc2": (D, 2 * D)}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n=B, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def exact():
    """A small backbone in fp64, where any tolerance below fp32 rounding means equal."""
    return random_backbone(depth=DEPTH).cast(torch.float64)


@pytest.fixture
def tokens(exact):
    return exact.embed(images())


def close(got, want):
    torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-9)


# Neutral edits


NEUTRAL = {
    "empty": Edit(),
    "mask of ones": Edit(linear={n: LinearEdit(mask=torch.ones(SHAPES[n])) for n in LINEARS}),
    "zero low rank": Edit(
        linear={n: LinearEdit(down=draw(2, SHAPES[n][1]).float(), up=torch.zeros(SHAPES[n][0], 2)) for n in LINEARS}
    ),
    "zero bias": Edit(linear={n: LinearEdit(bias=torch.zeros(SHAPES[n][0])) for n in LINEARS}),
    "zero adapter": Edit(adapter=torch.zeros_like),
}


@pytest.mark.parametrize("edit", NEUTRAL.values(), ids=NEUTRAL)
def test_neutral_edits_change_nothing(edit):
    backbone = random_backbone(depth=DEPTH)
    plain = backbone(images())
    got = backbone(images(), LayerPlan(dict.fromkeys(range(DEPTH), edit)))
    torch.testing.assert_close(got, plain, atol=1e-6, rtol=1e-6)


def test_plans_without_edits_are_bit_equal_to_no_plan():
    backbone = random_backbone(depth=DEPTH)
    plain = backbone(images())
    assert torch.equal(backbone(images(), LayerPlan({})), plain)
    assert torch.equal(backbone(images(), LayerPlan({1: Edit()})), plain)


# Edited maps against replaced weights


def replaced(backbone, layer, name, edit):
    """Parameters in which the edited map is written out as a weight and a bias."""
    at = f"encoder.blocks.{layer}."
    where = {"proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}.get(name, "attn.qkv")
    state = dict(backbone.named_parameters())
    weight, bias = state[f"{at}{where}.weight"].clone(), state[f"{at}{where}.bias"].clone()
    rows = slice(None) if name not in "qkv" else slice("qkv".index(name) * D, ("qkv".index(name) + 1) * D)
    if edit.mask is not None:
        weight[rows] *= edit.mask
    if edit.down is not None:
        weight[rows] += edit.up @ edit.down
    if edit.bias is not None:
        bias[rows] += edit.bias
    return {f"{at}{where}.weight": weight, f"{at}{where}.bias": bias}


def some_edit(name, seed=0):
    out, inp = SHAPES[name]
    return LinearEdit(
        mask=1 + 0.5 * draw(out, inp, seed=seed),
        bias=draw(out, seed=seed + 1),
        down=draw(2, inp, seed=seed + 2) * 0.3,
        up=draw(out, 2, seed=seed + 3) * 0.3,
    )


@pytest.mark.parametrize("layer", [0, DEPTH - 1])
@pytest.mark.parametrize("name", LINEARS)
def test_an_edited_map_equals_a_replaced_weight(exact, name, layer):
    edit = some_edit(name)
    got = exact(images(), LayerPlan({layer: Edit(linear={name: edit})}))
    want = functional_call(exact, replaced(exact, layer, name, edit), (images(),))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    assert (got - exact(images())).abs().max() > 1e-2


def test_all_maps_edited_at_once(exact):
    edits = {name: some_edit(name, seed=10 * i) for i, name in enumerate(LINEARS)}
    got = exact(images(), LayerPlan({1: Edit(linear=edits)}))
    state = {}
    for name in LINEARS:
        new = replaced(exact, 1, name, edits[name])
        for key, value in new.items():
            old = exact.get_parameter(key)
            state[key] = state.get(key, old) + value - old
    torch.testing.assert_close(got, functional_call(exact, state, (images(),)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", LINEARS)
def test_every_sample_may_have_its_own_weights(exact, tokens, name):
    out, inp = SHAPES[name]
    mask, down, up = 1 + 0.5 * draw(B, out, inp), draw(B, 2, inp, seed=1) * 0.3, draw(B, out, 2, seed=2) * 0.3
    got = exact.run(tokens, LayerPlan({1: Edit(linear={name: LinearEdit(mask=mask, down=down, up=up)})})).h
    for i in range(B):
        own = LinearEdit(mask=mask[i], down=down[i], up=up[i])
        alone = exact.run(Tokens(tokens.h[i : i + 1]), LayerPlan({1: Edit(linear={name: own})})).h
        close(got[i : i + 1], alone)


def test_encoders_without_qkv_bias_take_edits():
    torch.manual_seed(0)
    block = Block(Arch(dim=D, depth=1, heads=H, mlp_dim=D, qkv_bias=False)).double()
    x = draw(B, N, D)
    close(block(x, None, Edit(linear={"k": LinearEdit()})), block(x))
    bias = draw(D, seed=1)
    want = block.attn.qkv(x)[..., 2 * D :] + bias
    _, _, v = block.attn._project(x, Edit(linear={"v": LinearEdit(bias=bias)}))
    close(v, want.unflatten(-1, (H, D // H)).transpose(1, 2))


# Prefixes against hand-written attention


def attention(block, x, prefix=None, keep=None, mask=None):
    """Softmax attention written out per sample and head; ``keep`` and ``mask`` choose visible positions by removal."""
    w, b = block.attn.qkv.weight, block.attn.qkv.bias
    out = torch.empty_like(x)
    width = D // H
    for i, sample in enumerate(x):
        seen = sample if mask is None else sample[mask[i]]
        heads = []
        for head in range(H):
            rows = [slice(part * D + head * width, part * D + (head + 1) * width) for part in range(3)]
            q = sample @ w[rows[0]].T + b[rows[0]]
            k, v = (seen @ w[r].T + b[r] for r in rows[1:])
            if prefix is not None:
                own_k, own_v = (p[i if len(p) > 1 else 0, head] for p in prefix)
                if keep is not None:
                    own_k, own_v = own_k[keep[i]], own_v[keep[i]]
                k, v = torch.cat([own_k, k]), torch.cat([own_v, v])
            scores = q @ k.T / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append(weights @ v)
        out[i] = torch.cat(heads, 1) @ block.attn.proj.weight.T + block.attn.proj.bias
    return out


@pytest.fixture
def block(exact):
    return exact.encoder.blocks[0]


def prompts(n=B, seed=5):
    return draw(n, 2, P, D, seed=seed)


def test_plain_attention_is_softmax_attention(block):
    x = draw(B, N, D)
    close(block.attn(x, None, Edit()), attention(block, x))


@pytest.mark.parametrize("n", [1, B])
def test_prefixes_are_joined_to_keys_and_values(block, n):
    x, prefix = draw(B, N, D), prefix_from(prompts(n), H)
    got = block.attn(x, None, Edit(prefix=prefix))
    close(got, attention(block, x, prefix))
    swapped = block.attn(x, None, Edit(prefix=prefix[::-1]))
    assert (got - swapped).abs().max() > 0.1, "keys and values have different roles"


def test_a_prefix_enters_its_own_layer(exact, tokens):
    prefix = prefix_from(prompts(), H)
    got = exact.run(tokens, LayerPlan({1: Edit(prefix=prefix)})).h
    block = exact.encoder.blocks[1]
    h = exact.run(tokens, stop=1).h
    h = h + attention(block, block.norm1(h), prefix)
    h = h + block.mlp(block.norm2(h), Edit())
    close(got, exact.run(Tokens(h), start=2).h)


def test_prefixes_with_edited_projections(block):
    """A prefix is given after the projections: an edit of k and v must not touch it."""
    x, prefix = draw(B, N, D), prefix_from(prompts(), H)
    edits = {"k": some_edit("k"), "v": some_edit("v", seed=9)}
    got = block.attn(x, None, Edit(prefix=prefix, linear=edits))
    twin = Block(Arch(dim=D, depth=1, heads=H, mlp_dim=2 * D)).double().requires_grad_(False)
    twin.load_state_dict(block.state_dict())
    for name, edit in edits.items():
        rows = slice("qkv".index(name) * D, ("qkv".index(name) + 1) * D)
        twin.attn.qkv.weight[rows] = block.attn.qkv.weight[rows] * edit.mask + edit.up @ edit.down
        twin.attn.qkv.bias[rows] += edit.bias
    close(got, attention(twin, x, prefix))


def test_a_prefix_belongs_to_its_sample(exact, tokens):
    shuffle = torch.tensor([2, 0, 1])

    def run(h, p):
        return exact.run(Tokens(h), LayerPlan(dict.fromkeys(range(DEPTH), Edit(prefix=prefix_from(p, H))))).h

    got = run(tokens.h, prompts())
    close(run(tokens.h[shuffle], prompts()[shuffle]), got[shuffle])
    assert (run(tokens.h, prompts()[shuffle]) - got).abs().amax((1, 2)).min() > 1e-2


def test_absent_prefix_positions_take_no_share(block):
    x, prefix = draw(B, N, D), prefix_from(prompts(), H)
    keep = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
    got = block.attn(x, None, Edit(prefix=prefix, prefix_mask=keep))
    close(got, attention(block, x, prefix, keep))
    close(got[1], block.attn(x, None, Edit())[1])


def test_masked_prefix_is_none_and_zero_prefix_is_not(exact, tokens):
    zero = (torch.zeros(1, H, P, D // H, dtype=torch.float64),) * 2
    none = torch.zeros(B, P, dtype=torch.bool)
    plain = exact.run(tokens).h
    close(exact.run(tokens, LayerPlan({0: Edit(prefix=prefix_from(prompts(), H), prefix_mask=none)})).h, plain)
    close(exact.run(tokens, LayerPlan({0: Edit(prefix=zero, prefix_mask=none)})).h, plain)
    assert (exact.run(tokens, LayerPlan({0: Edit(prefix=zero)})).h - plain).abs().max() > 1e-2


# Padding


MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]], dtype=torch.bool)


def test_padded_tokens_do_not_influence_the_others(exact, tokens):
    got = exact.run(Tokens(tokens.h, MASK)).h
    noisy = torch.where(MASK[..., None], tokens.h, 10 * draw(B, N, D, seed=3))
    close(exact.run(Tokens(noisy, MASK)).h[MASK], got[MASK])
    for i in range(B):
        close(got[i][MASK[i]], exact.run(Tokens(tokens.h[i : i + 1, MASK[i]])).h[0])


def test_prefixes_stay_visible_under_padding(exact, tokens, block):
    plan = LayerPlan(dict.fromkeys(range(DEPTH), Edit(prefix=prefix_from(prompts(), H))))
    got = exact.run(Tokens(tokens.h, MASK), plan).h
    for i in range(B):
        own = LayerPlan(dict.fromkeys(range(DEPTH), Edit(prefix=prefix_from(prompts()[i : i + 1], H))))
        close(got[i][MASK[i]], exact.run(Tokens(tokens.h[i : i + 1, MASK[i]]), own).h[0])


def test_padding_and_absent_prefix_positions_together(block):
    x, prefix = draw(B, N, D), prefix_from(prompts(), H)
    keep = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    close(
        block.attn(x, MASK, Edit(prefix=prefix, prefix_mask=keep)),
        attention(block, x, prefix, keep, MASK),
    )


def test_the_mask_travels_with_the_tokens(exact, tokens):
    assert exact.run(Tokens(tokens.h, MASK)).mask is MASK
    assert exact.run(tokens).mask is None


# Task axis


@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_a_task_axis_equals_a_loop_over_tasks(exact, tokens, mask):
    by_task = draw(T, 2, P, D, seed=6)
    weights = {n: 1 + 0.5 * draw(T, 1, *SHAPES[n], seed=7) for n in LINEARS}
    down, up = draw(T, 1, 2, D, seed=8) * 0.3, draw(T, 1, D, 2, seed=9) * 0.3
    keys, values = prefix_from(by_task, H)
    keep = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]], dtype=torch.bool)
    together = LayerPlan(
        {
            0: Edit(prefix=(keys[:, None], values[:, None])),
            1: Edit(linear={n: LinearEdit(mask=weights[n]) for n in LINEARS}),
            2: Edit(
                prefix=(keys[:, None], values[:, None]),
                prefix_mask=keep,
                linear={"q": LinearEdit(down=down, up=up)},
            ),
        }
    )
    h = torch.stack([tokens.h, tokens.h + draw(B, N, D, seed=10)])
    got = exact.run(Tokens(h, mask), together).h
    assert got.shape == (T, B, N, D)
    for t in range(T):
        prefix = prefix_from(by_task[t : t + 1], H)
        alone = LayerPlan(
            {
                0: Edit(prefix=prefix),
                1: Edit(linear={n: LinearEdit(mask=weights[n][t, 0]) for n in LINEARS}),
                2: Edit(prefix=prefix, prefix_mask=keep, linear={"q": LinearEdit(down=down[t, 0], up=up[t, 0])}),
            }
        )
        close(got[t], exact.run(Tokens(h[t], mask), alone).h)


def test_pool_with_a_task_axis(exact, tokens):
    h = torch.stack([tokens.h, 2 * tokens.h + 1])
    for at in (None, slice(1, 3)):
        close(exact.pool(Tokens(h), at)[1], exact.pool(Tokens(h[1]), at))


# Adapters, activations, scales


def test_an_adapter_sees_the_residual_stream_that_enters_the_mlp(exact, tokens):
    seen = []

    def adapter(h):
        seen.append(h)
        return 0.5 * h.sin()

    got = exact.run(tokens, LayerPlan({1: Edit(adapter=adapter)})).h
    block = exact.encoder.blocks[1]
    h = exact.run(tokens, stop=1).h
    middle = h + block.attn(block.norm1(h), None, Edit())
    assert len(seen) == 1
    close(seen[0], middle)
    after = middle + block.mlp(block.norm2(middle), Edit()) + 0.5 * middle.sin()
    close(got, exact.run(Tokens(after), start=2).h)


def test_an_adapter_may_compute_in_another_precision():
    backbone = random_backbone(depth=1).cast(torch.bfloat16)
    out = backbone.run(backbone.embed(images()), LayerPlan({0: Edit(adapter=lambda h: h.float())}))
    assert out.h.dtype == torch.bfloat16


def test_layer_scales_act_on_the_branches_and_not_on_the_adapter():
    torch.manual_seed(0)
    block = Block(Arch(dim=D, depth=1, heads=H, mlp_dim=2 * D, layer_scale=True)).double().requires_grad_(False)
    block.ls1.gamma.copy_(draw(D, seed=1))
    block.ls2.gamma.copy_(draw(D, seed=2))
    h = draw(B, N, D)
    middle = h + block.ls1.gamma * block.attn(block.norm1(h), None, Edit())
    want = middle + block.ls2.gamma * block.mlp(block.norm2(middle), Edit()) + middle.sin()
    close(block(h, None, Edit(adapter=torch.sin)), want)


def test_activations():
    x = draw(7)
    close(ACTIVATIONS["gelu"](x), x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
    close(ACTIVATIONS["quick_gelu"](x), x / (1 + torch.exp(-1.702 * x)))
    close(ACTIVATIONS["relu"](x), x.clamp(min=0))


# Ranges and plans


def test_ranges_compose_to_the_whole(exact, tokens):
    plan = LayerPlan({i: Edit(prefix=prefix_from(prompts(seed=i), H)) for i in range(DEPTH)})
    whole = exact.run(Tokens(tokens.h, MASK), plan)
    for cut in range(DEPTH + 1):
        state = exact.run(exact.run(Tokens(tokens.h, MASK), plan, stop=cut), plan, start=cut)
        assert torch.equal(state.h, whole.h)
        assert state.mask is MASK
    assert torch.equal(exact.run(tokens, start=1, stop=1).h, tokens.h)


def test_the_plain_pass_below_the_first_edited_layer_can_be_shared(exact, tokens):
    plan = LayerPlan({2: Edit(linear={"fc1": some_edit("fc1")})})
    below = exact.run(tokens, stop=plan.first)
    assert torch.equal(exact.run(below, plan, start=plan.first).h, exact.run(tokens, plan).h)
    assert torch.equal(exact.run(below, start=plan.first).h, exact.run(tokens).h)


def test_a_plan_reads_the_state_that_enters_each_layer(exact, tokens):
    calls = []

    class Reader:
        first = 0

        def __call__(self, layer, tokens):
            calls.append((layer, tokens))
            return None

    exact.run(tokens, Reader(), start=1)
    assert [layer for layer, _ in calls] == [1, 2]
    calls.clear()
    exact.run(tokens, Reader())
    assert [layer for layer, _ in calls] == [0, 1, 2]
    for layer, given in calls:
        assert torch.equal(given.h, exact.run(tokens, stop=layer).h)
        assert given.mask is tokens.mask


@pytest.mark.parametrize(("start", "stop"), [(2, 1), (-1, None), (0, DEPTH + 1), (DEPTH + 1, None)])
def test_ranges_outside_the_depth_are_refused(exact, tokens, start, stop):
    with pytest.raises(InputError, match=f"0 <= start <= stop <= {DEPTH}"):
        exact.run(tokens, start=start, stop=stop)


def test_nothing_is_parked_on_the_modules(exact):
    before = {k: v.clone() for k, v in exact.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in exact.named_modules()}
    plain = exact(images())
    plan = LayerPlan(
        dict.fromkeys(
            range(DEPTH),
            Edit(
                prefix=prefix_from(prompts(), H),
                linear={n: some_edit(n) for n in LINEARS},
                adapter=torch.sin,
            ),
        )
    )
    edited = exact(images(), plan)
    assert torch.equal(exact(images()), plain)
    assert torch.equal(exact(images(), plan), edited)
    assert not torch.equal(edited, plain)
    assert all(torch.equal(v, exact.state_dict()[k]) for k, v in before.items())
    assert attributes == {name: set(vars(module)) for name, module in exact.named_modules()}


def test_a_frozen_backbone_gets_no_gradients_and_the_edits_do():
    backbone = random_backbone(depth=2)
    own = nn.ParameterDict(
        {
            "prompts": prompts().float(),
            "mask": torch.ones(D, D),
            "bias": torch.zeros(D),
            "down": draw(2, D).float(),
            "up": torch.zeros(2 * D, 2),
            "adapter": 0.1 * draw(D, D).float(),
        }
    )
    plan = LayerPlan(
        {
            0: Edit(prefix=prefix_from(own["prompts"], H), linear={"q": LinearEdit(mask=own["mask"])}),
            1: Edit(
                linear={"v": LinearEdit(bias=own["bias"]), "fc1": LinearEdit(down=own["down"], up=own["up"])},
                adapter=lambda h: h @ own["adapter"],
            ),
        }
    )
    backbone(images(), plan).square().sum().backward()
    assert all(p.grad is None for p in backbone.parameters())
    for name, p in own.items():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        if name != "down":  # its factor is zero
            assert p.grad.abs().max() > 0, name


def test_gradients_of_prefixes_are_right(exact, tokens):
    def f(p):
        return exact.run(tokens, LayerPlan({1: Edit(prefix=prefix_from(p, H))}), start=1, stop=2).h[:, :1, :4]

    assert torch.autograd.gradcheck(f, prompts(1)[:, :, :1].clone().requires_grad_())


def test_bf16_is_close_to_fp32():
    backbone = random_backbone(depth=DEPTH)
    plan = LayerPlan(
        {
            0: Edit(prefix=prefix_from(prompts().float(), H)),
            1: Edit(linear={n: LinearEdit(mask=1 + 0.1 * draw(*SHAPES[n]).float()) for n in LINEARS}),
            2: Edit(linear={"fc1": LinearEdit(down=draw(2, D).float() * 0.1, up=draw(2 * D, 2).float() * 0.1)}),
        }
    )
    for p in (None, plan):
        full = backbone.cast(torch.float32)(images(8) if p is None else images(), p)
        state = {k: v.clone() for k, v in backbone.state_dict().items()}
        half = backbone.cast(torch.bfloat16)(images(8) if p is None else images(), p)
        backbone.cast(torch.float32).load_state_dict(state)
        assert half.dtype == torch.float32
        assert F.cosine_similarity(full, half).min() > 0.995
        assert (full - half).abs().max() > 0, "bf16 was not used"


# Sizes


def test_sizes_are_checked():
    with pytest.raises(InputError, match=r"dim \(16\) must be a multiple of heads \(3\)"):
        Arch(dim=16, depth=1, heads=3, mlp_dim=8)
    with pytest.raises(InputError, match=r"act must be one of \['gelu', 'quick_gelu', 'relu'\], got 'tanh'"):
        Arch(dim=16, depth=1, heads=2, mlp_dim=8, act="tanh")
    assert len(Encoder(Arch(dim=16, depth=4, heads=2, mlp_dim=8)).blocks) == 4


# Images to tokens


def make(readout="cls", **more):
    torch.manual_seed(0)
    preprocess = Preprocess(8, (0.1, 0.5, 0.7), (0.2, 0.5, 0.9), "bilinear")
    backbone = VisionBackbone(Arch(dim=D, depth=1, heads=H, mlp_dim=D), patch=4, preprocess=preprocess, readout=readout)
    for p in backbone.parameters():
        p.data = torch.randn_like(p)
    return backbone.requires_grad_(False)


def test_uint8_and_float_inputs_agree():
    backbone = make()
    torch.testing.assert_close(backbone.embed(images()).h, backbone.embed(images().double() / 255).h)
    torch.testing.assert_close(backbone(images()), backbone(images().float() / 255))


def test_embedding_is_normalised_pixels_patch_by_patch():
    backbone = make()
    tokens = backbone.embed(images())
    assert tokens.mask is None
    mean, std = torch.tensor([0.1, 0.5, 0.7]), torch.tensor([0.2, 0.5, 0.9])
    x = (images() / 255 - mean[:, None, None]) / std[:, None, None]
    corners = [(0, 0), (0, 4), (4, 0), (4, 4)]  # row by row
    for i, (top, left) in enumerate(corners):
        patch = x[:, :, top : top + 4, left : left + 4]
        want = torch.einsum("bchw,dchw->bd", patch, backbone.patch_embed.weight) + backbone.patch_embed.bias
        torch.testing.assert_close(tokens.h[:, 1 + i], want + backbone.pos_embed[0, 1 + i], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokens.h[:, 0], (backbone.cls_token + backbone.pos_embed[:, :1])[:, 0].expand(B, D))
    prompts = torch.randn(2, 3, D)
    assert torch.equal(backbone.as_tokens(prompts), prompts + backbone.pos_embed[0, 0])


def test_unit_preprocessing_leaves_pixels_alone():
    weights = Preprocess(8, (0.1, 0.5, 0.7), (0.2, 0.5, 0.9), "bilinear")
    assert weights.unit() == Preprocess(8, (0.0,) * 3, (1.0,) * 3, "bilinear")
    backbone = make()
    unit = VisionBackbone(backbone.arch, patch=4, preprocess=weights.unit())
    unit.load_state_dict(backbone.state_dict())
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shifted = x * backbone.std + backbone.mean
    torch.testing.assert_close(unit(x), backbone(shifted), atol=1e-4, rtol=1e-4)


def test_readouts():
    backbone = make("mean")
    out = backbone.run(backbone.embed(images()))
    torch.testing.assert_close(backbone(images()), backbone.encoder.norm(out.h[:, 1:].mean(1)))
    torch.testing.assert_close(make("cls").pool(out), backbone.encoder.norm(out.h[:, 0]))
    want = torch.stack([backbone.encoder.norm(out.h[:, i]) for i in (2, 3)]).mean(0)
    torch.testing.assert_close(backbone.pool(out, at=slice(2, 4)), want)


@pytest.mark.parametrize("shape", [(2, 3, 8, 12), (2, 3, 12, 8), (2, 1, 8, 8), (3, 8, 8)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(InputError, match=r"images must be \(B, 3, 8, 8\), got \("):
        make().embed(torch.zeros(shape))


def test_backbone_options_are_checked():
    arch = Arch(dim=D, depth=1, heads=H, mlp_dim=D)
    with pytest.raises(InputError, match="size 9 must be a multiple of the patch side 4"):
        VisionBackbone(arch, patch=4, preprocess=Preprocess(9, (0.0,) * 3, (1.0,) * 3))
    with pytest.raises(InputError, match=r"must be one of \['cls', 'mean', 'cls\+mean'\], got 'max'"):
        VisionBackbone(arch, patch=4, preprocess=Preprocess(8, (0.0,) * 3, (1.0,) * 3), readout="max")


def test_cast_keeps_normalisation_in_fp32():
    backbone = make().cast(torch.bfloat16)
    assert backbone.dtype == torch.bfloat16
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert backbone.mean.dtype == backbone.std.dtype == torch.float32
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.5, 0.7], abs=1e-7)
    assert backbone.embed(images()).h.dtype == torch.bfloat16
    assert "mean" not in backbone.state_dict(), "normalisation is not part of the weights"
