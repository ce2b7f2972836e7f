"""Gradient projection: the subspaces themselves, and the prompts that are kept inside them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ostinato.contract import Case
from ostinato.contract.checks import resuming, scoring, state
from ostinato.contract.harness import SETTINGS, inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import random_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.lookup import get_method
from ostinato.methods.dualprompt import DualPrompt
from ostinato.methods.parts.prompts import Prompts
from ostinato.nn.projection import Covariance, GradientProjection, Subspace, sampled
from ostinato.training.callbacks import Callback
from ostinato.training.loop import learn_task

D, H = 16, 2
CPU = torch.device("cpu")
DUAL = {"g_layers": (0, 2), "e_layers": (4, 3), "g_length": 3, "e_length": 4}
VARIANTS = [
    ("dualprompt", {"pgp": 0.9}),
    ("dualprompt", {"keys": "mean"}),
    ("dualprompt", {"keys": "classes", "pgp": 0.9}),
    ("dualprompt", {"pgp": 1.0, "keys": "mean", "g_layers": ()}),
    ("l2p", {"pgp": 0.9}),
    ("l2p", {"pgp": 0.5, "pgp_keys": 1.0, "readout": "cls"}),
]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(n, rank, seed=0, dim=D):
    """Rows (n, dim) of a given rank whose directions have different weights."""
    weights = 2.0 ** -torch.arange(rank)
    return (draw(n, rank, seed=seed) * weights) @ draw(rank, dim, seed=seed + 1)


def covariance(rows, blocks=1):
    total = Covariance(rows.shape[1], device=CPU, blocks=blocks)
    for part in rows.split(7):
        total.add(part)
    return total


@pytest.fixture(scope="module")
def stream():
    return tiny_stream()


# Covariance


def test_covariance_is_the_product_of_all_rows_however_they_come():
    rows = draw(50, D)
    want = rows.double().numpy().T @ rows.double().numpy()
    matrix = covariance(rows).matrix()
    assert matrix.dtype == torch.float64
    np.testing.assert_allclose(matrix.numpy(), want, rtol=1e-12, atol=1e-12)


def test_covariance_in_blocks_takes_every_part_of_a_row_as_a_row():
    rows = draw(20, D)
    apart = torch.zeros(4, 20, D)
    for block in range(4):
        part = slice(4 * block, 4 * block + 4)
        apart[block, :, part] = rows[:, part]
    torch.testing.assert_close(covariance(rows, blocks=4).matrix(), covariance(apart.flatten(0, 1)).matrix())


# Subspace


def gpm(bases, rows, energy):
    """Literal gradient projection memory: an SVD of the rows that are left, one direction at a time."""
    v = bases
    total = np.sum(rows**2)
    residual = rows - rows @ v @ v.T
    _, sigma, directions = np.linalg.svd(residual, full_matrices=False)
    covered = total - np.sum(residual**2)
    n = 0
    while covered + np.sum(sigma[:n] ** 2) < energy * total and n < len(sigma):
        n += 1
    return np.concatenate([v, directions[:n].T], axis=1)


@pytest.mark.parametrize("energy", [0.3, 0.5, 0.9, 0.97, 0.999])
def test_directions_follow_the_rule_of_gradient_projection_memory(energy):
    space, want = Subspace(D), np.zeros((D, 0))
    sizes = []
    for task in range(5):
        rows = rows_of(40, 9, seed=10 * task)
        space.add(covariance(rows).matrix(), energy)
        want = gpm(want, rows.double().numpy(), energy)
        sizes.append(want.shape[1])
        assert space.basis.shape == (D, sizes[-1])
        got = space.basis.double().numpy()
        np.testing.assert_allclose(got @ got.T, want @ want.T, atol=1e-5)  # the subspace, whatever its basis
        np.testing.assert_allclose(got.T @ got, np.eye(sizes[-1]), atol=1e-6)
        held = np.sum((rows.double().numpy() @ got) ** 2) / np.sum(rows.double().numpy() ** 2)
        assert held >= energy - 1e-6
    assert 0 < sizes[0] < sizes[-1] <= D


def test_a_full_share_takes_exactly_the_directions_there_are():
    space = Subspace(D)
    rows = rows_of(30, 4)
    space.add(covariance(rows).matrix(), 1.0)
    assert space.basis.shape == (D, 4)
    assert (rows - rows @ space.basis @ space.basis.T).abs().max() < 1e-4
    space.add(covariance(rows[:10]).matrix(), 1.0)
    assert space.basis.shape == (D, 4), "what is covered adds nothing"
    before = space.basis.clone()
    space.add(torch.zeros(D, D), 1.0)
    assert torch.equal(space.basis, before), "no rows add nothing"


def test_a_subspace_ends_at_the_whole_space():
    space = Subspace(D)
    for seed in range(3):
        space.add(covariance(draw(60, D, seed=seed)).matrix(), 1.0)
        assert space.basis.shape == (D, D)
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(D), atol=1e-6, rtol=0)
    assert space.project(draw(3, D)).abs().max() < 1e-5


def test_projection_removes_the_subspace_and_nothing_else():
    space, update = Subspace(D), draw(2, 3, D)
    assert torch.equal(space.project(update), update), "an empty subspace removes nothing"
    space.add(covariance(rows_of(30, 5)).matrix(), 0.99)
    got = space.project(update)
    assert (got @ space.basis).abs().max() < 1e-6
    removed = update - got
    torch.testing.assert_close(removed @ space.basis @ space.basis.T, removed, atol=1e-6, rtol=0)
    torch.testing.assert_close(space.project(got), got, atol=1e-6, rtol=0)


def test_a_subspace_loads_at_any_size():
    full, fresh = GradientProjection([0.5, 1.0], D), GradientProjection([0.5, 1.0], D)
    full.collect([torch.zeros(1)], lambda _: [rows_of(30, 5), rows_of(30, 7)])
    fresh.load_state_dict(full.state_dict())
    for a, b in zip(full, fresh, strict=True):
        assert torch.equal(a.basis, b.basis)
    full.load_state_dict(GradientProjection([0.5, 1.0], D).state_dict())
    assert full[0].basis.shape == (D, 0)


# The step


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_step_moves_constrained_parts_outside_their_subspace_only(optimizer):
    def run(step):
        p = torch.nn.Parameter(draw(2, 3, D))
        opt = optimizer([p], lr=0.1, weight_decay=0.1)
        for seed in range(3):
            p.grad = draw(2, 3, D, seed=seed)
            step(opt, p)
        return p.detach()

    spaces = GradientProjection([1.0], D)
    spaces.collect([torch.zeros(1)], lambda _: [rows_of(30, 6)])
    basis = spaces[0].basis
    start, free = draw(2, 3, D), run(lambda opt, _: opt.step())
    got = run(lambda opt, p: spaces.step(opt, [p.detach()[0]]))
    assert ((got - start)[0] @ basis).abs().max() < 1e-6
    assert ((free - start)[0] @ basis).abs().max() > 1e-2
    assert torch.equal(got[1], free[1]), "what is not named is left alone"
    if optimizer is torch.optim.Adam:  # the reason why gradients are not what is projected

        def project_gradient(opt, p):
            p.grad[0] = spaces[0].project(p.grad[0])
            opt.step()

        assert ((run(project_gradient) - start)[0] @ basis).abs().max() > 1e-2


def test_a_sample_of_a_pass():
    def batches(n):
        for part in torch.arange(n).split(4):
            yield part, part

    torch.manual_seed(0)
    chosen = torch.cat(list(sampled(batches(50), 50, 12)))
    assert len(chosen) == 12
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.max() > 25 > chosen.min()
    assert torch.cat(list(sampled(batches(10), 10, 12))).tolist() == list(range(10))


# DualPrompt


class Watch(Callback):
    """Keeps copies of what a function returns, at the start of every stage and after every step."""

    def __init__(self, look) -> None:
        self.look, self.seen = look, []

    def on_stage_start(self, task, stage, step, steps) -> None:
        self.seen.append([v.clone() for v in self.look()])

    def on_step(self, position, losses, optimizer, n) -> None:
        self.seen.append([v.clone() for v in self.look()])

    def moves(self):
        return [[b - a for a, b in zip(x, y, strict=True)] for x, y in zip(self.seen, self.seen[1:], strict=False)]


def prefixes(method, half):
    return [*method.prompts.g_prompt.detach()[:, half], *method.prompts.e_prompt[-1].detach()[:, half]]


def queries_of(method, stream, i):
    """Query vectors per prompted layer of a task's training images, written out with hooks."""
    seen = {}

    def keep(k, attn):
        weight, bias = attn.qkv.weight[:D], attn.qkv.bias[:D]
        return lambda _m, _i, out: seen.update({k: out @ weight.T + bias})

    hooks = [
        block.norm1.register_forward_hook(keep(k, block.attn)) for k, block in enumerate(method.backbone.encoder.blocks)
    ]
    x = torch.cat([x for x, _ in learn_task_of(method, stream, i).eval_batches()])
    with torch.no_grad():
        # The plain read-out computes the last layer for the CLS token only; none is prompted here.
        method.features(x, method.prompts.under(i))
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in (*method.prompts.g_layers, *method.prompts.e_layers)]


@pytest.mark.parametrize("energy", [0.5, 0.9])
def test_dualprompt_directions_are_those_of_the_queries_under_the_trained_prompts(stream, energy):
    method = learn(make("dualprompt", pgp=energy, **DUAL), stream, upto=1)
    for space, query in zip(method.prompts.projection, queries_of(method, stream, 0), strict=True):
        heads = query.double().unflatten(-1, (H, -1))
        apart = np.zeros((H, heads[..., 0, 0].numel(), D))
        for head in range(H):
            apart[head, :, head * D // H : (head + 1) * D // H] = heads[..., head, :].flatten(0, 1)
        want = gpm(np.zeros((D, 0)), apart.reshape(-1, D), energy)
        assert 0 < want.shape[1] < D
        got = space.basis.double().numpy()
        assert got.shape == want.shape
        np.testing.assert_allclose(got @ got.T, want @ want.T, atol=1e-4)


def test_dualprompt_updates_of_keys_leave_the_directions_of_old_queries_alone(stream):
    method = learn(make("dualprompt", pgp=0.9, **DUAL), stream, upto=1)
    keys, values = Watch(lambda: prefixes(method, 0)), Watch(lambda: prefixes(method, 1))

    class Both(Callback):
        def on_stage_start(self, *args):
            keys.on_stage_start(*args), values.on_stage_start(*args)

        def on_step(self, *args):
            keys.on_step(*args), values.on_step(*args)

    bases = [space.basis.clone() for space in method.prompts.projection]
    learn_task(method, learn_task_of(method, stream, 1), SETTINGS, Both())
    assert len(keys.moves()) > 2
    for moves in keys.moves():
        for move, basis in zip(moves, bases, strict=True):
            assert (move @ basis).abs().max() < 1e-6
            assert move.abs().max() > 1e-4, "the rest is free"
    for moves in values.moves():
        for move, basis in zip(moves, bases, strict=True):
            assert (move @ basis).abs().max() > 1e-4
    for space, basis in zip(method.prompts.projection, bases, strict=True):
        r = basis.shape[1]
        assert torch.equal(space.basis[:, :r], basis), "directions only come, none goes"


def test_dualprompt_first_task_is_not_projected(stream):
    x = inputs_of(stream, 1)
    assert torch.equal(
        scores(learn(make("dualprompt", pgp=0.9, **DUAL), stream, upto=1), x),
        scores(learn(make("dualprompt", **DUAL), stream, upto=1), x),
    )


def test_dualprompt_with_a_full_share_old_attention_does_not_change():
    """Queries that span half of each head: q_h . dP_h = 0 per head, so that old attention maps stay as they are."""
    backbone = random_backbone(depth=2)
    for block in backbone.encoder.blocks:  # queries of rank 4 per head, of 8
        w, b = block.attn.qkv.weight[:D], block.attn.qkv.bias[:D]
        for head in range(H):
            out = slice(head * D // H, (head + 1) * D // H)
            mix = F.normalize(draw(8, 4, seed=head), dim=0)
            w[out], b[out] = mix @ mix.T @ w[out], mix @ mix.T @ b[out]
    stream = tiny_stream()
    options = {"g_layers": (0,), "e_layers": (1,), "g_length": 3, "e_length": 4}
    change = {}
    for energy in (0.0, 1.0):
        method = learn(make("dualprompt", backbone=backbone, pgp=energy, **options), stream, upto=1)
        old = prefixes(method, 0)[0].clone()
        query = backbone.queries(
            0, backbone.embed(torch.cat([x for x, _ in learn_task_of(method, stream, 0).eval_batches()])).h
        )
        learn_task(method, learn_task_of(method, stream, 1), SETTINGS)
        moved = prefixes(method, 0)[0] - old
        assert moved.abs().max() > 1e-3
        per_head = torch.einsum("bnhd,phd->bnhp", query.unflatten(-1, (H, -1)), moved.unflatten(-1, (H, -1)))
        change[energy] = float(per_head.abs().max())
        if energy:
            assert [space.basis.shape[1] for space in method.prompts.projection] == [8, 8]
    assert change[1.0] < 1e-5
    assert change[0.0] > 1e-2


def test_statistics_take_a_bounded_number_of_images(stream, monkeypatch):
    seen = []
    add = Covariance.add
    monkeypatch.setattr(Covariance, "add", lambda self, rows: (seen.append(len(rows)), add(self, rows)))
    monkeypatch.setattr(Prompts, "images", 10)
    learn(make("dualprompt", pgp=0.9, **DUAL), stream, upto=1)
    assert sum(seen) == 4 * 10 * 5  # layers, images, tokens
    seen.clear()
    learn(make("l2p", pgp=0.9, top_k=2, length=3), stream, upto=1)
    assert sum(seen) == 10 * (2 * 3 + 4) + 10


def test_dualprompt_mean_keys_are_the_optimum_of_the_pull(stream):
    method = make("dualprompt", keys="mean", **DUAL)
    for i in range(len(stream)):
        task = learn_task_of(method, stream, i)
        watch = Watch(lambda: [method.keys.keys[-1].detach()])
        learn_task(method, task, SETTINGS, watch)
        assert all(torch.equal(seen[0], watch.seen[0][0]) for seen in watch.seen), "no step moves a key"
        assert not method.keys.keys[-1].requires_grad
    for i, key in enumerate(method.keys.keys):
        x = torch.cat([x for x, _ in learn_task_of(method, stream, i).eval_batches()])
        query = method.backbone(x).double()
        want = (query / query.norm(dim=1, keepdim=True)).mean(0)
        torch.testing.assert_close(key.detach(), want.float(), atol=1e-6, rtol=1e-6)
        best = F.cosine_similarity(query, key.detach().double()[None]).mean()
        for size in (1e-3, 1e-2, 0.1, 1.0):
            noise = size * want.norm() * F.normalize(draw(200, D, seed=i), dim=1).double()
            others = F.normalize(key.detach() + noise, dim=1) @ F.normalize(query, dim=1).T
            assert (others.mean(1) < best).all()
    assert set(method.loss(x, torch.full((len(x),), 4))) == {"ce"}
    assert set(make_begun("dualprompt", stream).loss(x, torch.zeros(len(x), dtype=torch.int64))) == {"ce", "pull"}


def make_begun(name, stream, **options):
    method = make(name, **options)
    method.begin_task(learn_task_of(method, stream, 0))
    return method


def test_dualprompt_mean_keys_change_nothing_but_the_keys_where_nothing_is_clipped(stream):
    """Key and prefixes meet in the gradient norm alone."""
    settings = SETTINGS.__class__(CPU, torch.float32, seed=3, overrides={"epochs": 2, "batch_size": 8, "clip": 1e9})
    a, b = (learn(make("dualprompt", keys=keys, **DUAL), stream, settings=settings) for keys in ("learned", "mean"))
    torch.testing.assert_close(a.prompts.g_prompt, b.prompts.g_prompt, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(a.prompts.e_prompt.stacked(), b.prompts.e_prompt.stacked(), atol=1e-6, rtol=1e-6)
    assert not torch.allclose(a.keys.keys.stacked(), b.keys.keys.stacked())


# L2P


def test_l2p_directions_and_updates(stream):
    method = learn(make("l2p", pgp=0.9, pgp_keys=0.9999, pool_size=6, top_k=2, length=3), stream, upto=1)
    x = torch.cat([x for x, _ in learn_task_of(method, stream, 0).eval_batches()])
    with torch.no_grad():
        ids, _ = method.pool.select(method.query(x))
        patches = method.backbone.embed(x).h[:, 1:]
        prompts = (method.pool.prompts[ids] + method.backbone.pos_embed[0, 0]).flatten(1, 2)
        rows = torch.cat([patches, prompts], dim=1).flatten(0, 1).double().numpy()
        want = [gpm(np.zeros((D, 0)), rows, 0.9), gpm(np.zeros((D, 0)), method.query(x).double().numpy(), 0.9999)]
        fewer = gpm(np.zeros((D, 0)), method.query(x).double().numpy(), 0.9)
    assert fewer.shape[1] < want[1].shape[1], "the shares must be told apart"
    bases = [space.basis.clone() for space in method.pool.projection]
    for got, w in zip(bases, want, strict=True):
        assert 0 < w.shape[1] < D
        assert got.shape == w.shape
        np.testing.assert_allclose((got @ got.T).numpy(), w @ w.T, atol=1e-4)
    watch = Watch(lambda: method.pool.protected())
    learn_task(method, learn_task_of(method, stream, 1), SETTINGS, watch)
    assert len(watch.moves()) > 2
    for moves in watch.moves():
        for move, basis in zip(moves, bases, strict=True):
            assert (move @ basis).abs().max() < 1e-6
            assert move.abs().max() > 1e-4
    assert method.pool.projection[0].basis.shape[1] >= bases[0].shape[1]


def test_l2p_features_take_a_plan(stream):
    method = make_begun("l2p", stream)
    x = inputs_of(stream, 1)
    ids, _ = method.pool.select(method.query(x))
    layers = []

    class Plan:
        first = 0

        def __call__(self, layer, tokens):
            layers.append((layer, tokens.h.shape[1]))

    assert torch.equal(method.pool.read(method.pool.tokens(x, ids), Plan()), method.features(x, ids))
    assert layers == [(layer, 1 + 25 + 4) for layer in range(12)]


# Both


@pytest.mark.parametrize("name", ["dualprompt", "l2p"])
def test_off_keeps_no_state(stream, name):
    state = learn(make(name), stream).learned_state()
    assert not [key for key in state if "projection" in key]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request) -> Case:
    name, options = request.param
    return Case(get_method(name), "image", options, depth=6)


CHECKS = [
    scoring.a_score_does_not_depend_on_its_batch,
    state.all_learned_state_is_saved,
    state.private_parts_of_earlier_tasks_are_bit_equal,
    resuming.a_run_stopped_anywhere_goes_on_to_the_same_result,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_contract_holds_with_other_options(variant, check):
    check(variant)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dualprompt", {"pgp": -0.1}, r"method\.pgp: .*greater than or equal to 0, got -0.1"),
        ("dualprompt", {"pgp": 1.1}, r"method\.pgp: .*less than or equal to 1"),
        ("dualprompt", {"pgp": 0.5, "warm_start": False}, r"method\.warm_start=true"),
        ("dualprompt", {"keys": "median"}, r"method\.keys"),
        ("l2p", {"pgp": 1.5}, r"method\.pgp: .*less than or equal to 1"),
        ("l2p", {"pgp": 0.5, "pgp_keys": 0.0}, r"method\.pgp_keys: .*greater than 0, got 0.0"),
        ("l2p", {"pgp": 0.5, "pgp_keys": 2.0}, r"method\.pgp_keys: .*less than or equal to 1"),
        ("l2p", {"pgp_keys": 0.9}, r"method\.pgp_keys has no effect with method\.pgp=0"),
    ],
)
def test_options(name, options, message):
    with pytest.raises(InputError, match=message):
        make(name, **options)


def test_options_of_the_constructor():
    with pytest.raises(InputError, match=r"method\.keys must be .*, got 'median'"):
        DualPrompt(random_backbone(depth=5), keys="median")
