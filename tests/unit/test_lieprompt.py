"""LiEPrompt and its pools: what they compute against the formulas written out naively."""

import math

import pytest
import torch
from torch.nn import functional as F

from ostinato.backbones import Arch, Edit, LayerPlan, Preprocess, Tokens, VisionBackbone
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.methods.lieprompt import LiEPrompt, PoolPlan
from ostinato.nn.pools import PromptPool
from ostinato.training.callbacks import Callback
from ostinato.training.loop import Settings, learn_task

D, H, DEPTH, P = 16, 2, 3, 2
SMALL = {"pool_size": 4, "length": P, "layer_topk": 1, "add_num": 3, "align": {"epochs": 2, "samples": 10}}
SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=3, overrides={"epochs": 2, "batch_size": 8})


class Colours(torch.utils.data.Dataset):
    """Six noisy images of a colour per class."""

    def __init__(self, classes, n=6):
        rng = torch.Generator().manual_seed(100 + classes.start)
        self.y = torch.tensor([c for c in classes for _ in range(n)])
        centres = torch.randint(30, 225, (20, 3, 1, 1), generator=torch.Generator().manual_seed(1))
        noise = 20 * torch.randn(len(self.y), 3, 8, 8, generator=rng)
        self.x = (centres[self.y] + noise).clamp(0, 255).to(torch.uint8)

    def __len__(self):
        return len(self.y)

    def __getitem__(self, key):
        i = key[0] if isinstance(key, tuple) else key
        return self.x[i], int(self.y[i])


def task_of(index, classes):
    data = Colours(classes)
    return LearnTask(index, classes, data, lambda: zip(data.x.split(4), data.y.split(4), strict=True))


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(**options):
    torch.manual_seed(3)
    return LiEPrompt(random_backbone(depth=DEPTH), **(SMALL | options)).eval()


def begin(method, *sizes, running=(0.2, 0.5, 0.3)):
    """Begin tasks one after the other, with chosen shares of the layers at the end of each but the last."""
    for n in sizes:
        if method.n_tasks:
            method.importance = torch.cat([method.importance, torch.tensor([running])])
        task = task_of(method.n_tasks, range(method.n_seen, method.n_seen + n))
        method.begin_task(task)
        method._collect_means(task)
    return method


def learn(method, *sizes, callback=None, **more):
    for n in sizes:
        task = task_of(method.n_tasks, range(method.n_seen, method.n_seen + n))
        learn_task(method, task, SETTINGS, callback, **more)
    return method.eval()


def nudge(method, seed=7):
    with torch.no_grad():
        for i, p in enumerate(p for p in method.parameters() if p.requires_grad):
            p += 0.1 * draw(*p.shape, seed=seed + i)


def cos(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def naive_softmax(values):
    e = [math.exp(v) for v in values]
    return [v / sum(e) for v in e]


# Pools


def grown_pool(*sizes, dim=D, length=P, seed=0):
    torch.manual_seed(seed)
    pool = PromptPool(sizes[0], length, dim)
    for n in sizes[1:]:
        pool.expand(n)
    return pool


@pytest.mark.parametrize("limit", [None, [4, 7, 5, 9, 1]])
def test_mix_equals_a_loop_over_samples_and_prompts(limit):
    pool, query = grown_pool(4, 3, 2), draw(5, D)
    got = pool.mix(query, None if limit is None else torch.tensor(limit))
    assert got.shape == (5, 2, P, D)
    prompts, keys = pool.all_prompts().detach(), pool.all_keys()
    for i in range(5):
        n = 9 if limit is None else limit[i]
        weights = naive_softmax([cos(query[i], keys[m]) for m in range(n)])
        want = sum(w * prompts[m] for m, w in enumerate(weights))
        torch.testing.assert_close(got[i], want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("limit", [None, [4, 7, 5, 9, 4]])
def test_select_equals_a_loop_and_puts_the_nearest_first(limit):
    pool, query, k = grown_pool(4, 3, 2), draw(5, D), 3
    got, similarity = pool.select(query, k, None if limit is None else torch.tensor(limit))
    assert got.shape == (5, 2, k * P, D)
    keys, orders = pool.all_keys(), set()
    for i in range(5):
        n = 9 if limit is None else limit[i]
        own = [cos(query[i], keys[m]) for m in range(n)]
        best = sorted(range(n), key=lambda m: -own[m])[:k]
        assert similarity[i].tolist() == pytest.approx([own[m] for m in best], abs=1e-6)
        for role in (0, 1):
            assert torch.equal(got[i, role], torch.cat([pool.all_prompts()[m, role] for m in best]))
        orders.add(tuple(best))
    assert len(orders) > 1, "samples choose differently, or the test shows nothing"


def test_mixing_trains_keys_and_selecting_does_not():
    pool, query = grown_pool(4, 3), draw(5, D)
    pool.mix(query).square().sum().backward()
    assert pool.keys.grad.abs().max() > 0
    assert pool.prompts.grad.abs().max() > 0
    pool.zero_grad()
    pool.select(query, 2)[0].square().sum().backward()
    assert pool.keys.grad is None
    assert pool.prompts.grad.abs().max() > 0


def test_expanding_freezes_everything_and_appends():
    pool = grown_pool(3)
    for n, size in ((2, 5), (4, 9)):
        prompts, keys = pool.all_prompts().detach().clone(), pool.all_keys().detach().clone()
        pool.expand(n)
        assert len(pool) == size == len(pool.all_keys())
        assert torch.equal(pool.frozen_prompts, prompts)
        assert torch.equal(pool.frozen_keys, keys)
        assert not pool.frozen_prompts.requires_grad
        assert not pool.frozen_keys.requires_grad
        assert pool.prompts.shape == (n, 2, P, D)
        assert pool.keys.shape == (n, D)
        for fresh in (pool.prompts, pool.keys):
            assert fresh.requires_grad
            assert 0.8 < fresh.abs().max() <= 1


def test_a_pool_loads_at_whatever_size():
    pool, fresh = grown_pool(3, 2, 4), grown_pool(3, seed=1)
    fresh.load_state_dict(pool.state_dict())
    assert len(fresh) == 9
    assert [p.shape[0] for p in fresh.parameters()] == [4, 4]
    assert all(p.requires_grad for p in fresh.parameters())
    assert torch.equal(fresh.all_prompts(), pool.all_prompts())
    assert torch.equal(fresh.all_keys(), pool.all_keys())


def test_overlap_of_keys():
    pool = grown_pool(3)
    assert pool.overlap() == 0
    pool.expand(1)
    with torch.no_grad():
        pool.frozen_keys.copy_(draw(1, D).expand(3, D))
        pool.keys.copy_(5 * pool.frozen_keys[:1])
    assert pool.overlap().item() == pytest.approx(1)
    pool = grown_pool(3, 4)
    new, old = pool.keys, pool.frozen_keys
    want = sum(cos(n, o) ** 2 for n in new for o in old) / 12
    want += sum((cos(a, b) - (i == j)) ** 2 for i, a in enumerate(new) for j, b in enumerate(new)) / 16
    assert pool.overlap().item() == pytest.approx(want, rel=1e-5)
    pool.overlap().backward()
    assert pool.keys.grad.abs().max() > 0


# Router


def test_the_gate_at_test_is_the_archived_routers_share_above_uniform():
    method = begin(make(), 2, 2, 1)
    nudge(method)
    frozen, tasks = draw(6, D), torch.tensor([2, 0, 1, 1, 0, 2])
    hard, by_mode = method.gate(frozen, tasks), {}
    for mode in ("soft", "soft_masked"):
        method.test_gate = mode
        by_mode[mode] = method.gate(frozen, tasks)
    for i, t in enumerate(tasks.tolist()):
        rows, bias = method.router_weight[t].detach(), method.router_bias[t].detach()
        share = naive_softmax([float(rows[layer] @ frozen[i] + bias[layer]) for layer in range(DEPTH)])
        mask = [float(s > 1 / DEPTH) for s in share]
        assert hard[i].tolist() == mask
        assert by_mode["soft"][i].tolist() == pytest.approx(share, abs=1e-5)
        assert by_mode["soft_masked"][i].tolist() == pytest.approx([s * m for s, m in zip(share, mask, strict=True)])
    assert 0 < hard.mean() < 1
    assert hard.shape == (6, DEPTH)


def test_the_gate_in_training_has_noise_of_the_learned_size():
    method = begin(make(), 2, 2)
    frozen = draw(5, D)
    logits = frozen @ method.router_weight[1].T + method.router_bias[1]
    torch.manual_seed(5)
    noise = torch.randn(5, DEPTH)
    torch.manual_seed(5)
    gate = method.training_gate(frozen)
    torch.testing.assert_close(gate, (logits + 0.1 * noise).softmax(1))
    gate[:, 0].sum().backward()
    assert method.noise_std.grad.abs() > 0
    assert method.router_weight[0].grad is None
    assert method.router_weight[1].grad.abs().max() > 0


def test_routers_start_fresh_and_old_ones_are_frozen():
    method = begin(make(), 2)
    assert method.router_bias[0].abs().max() == 0
    assert 0.01 < method.router_weight[0].std() < 0.03
    nudge(method)
    begin(method, 2)
    assert method.router_bias[1].abs().max() > 0
    assert 0.1 < method.router_weight[1].abs().max() <= D**-0.5
    assert not method.router_weight[0].requires_grad
    assert not method.router_bias[0].requires_grad
    assert method.router_weight[1].requires_grad


def test_the_running_share_is_an_average_that_starts_with_each_task():
    method = begin(make(), 2)
    gates = [draw(4, DEPTH, seed=i).softmax(1) for i in range(3)]
    want = gates[0].mean(0)
    for gate in gates:
        method.track(gate)
    for gate in gates[1:]:
        want = 0.9 * want + 0.1 * gate.mean(0)
    torch.testing.assert_close(method.running, want)
    begin(method, 2)
    assert method.running.abs().max() == 0
    method.track(gates[1])
    torch.testing.assert_close(method.running, gates[1].mean(0))


# Prefixes


@pytest.mark.parametrize(("top_k", "match"), [(0, "max"), (0, "cls"), (2, "max"), (0, "frozen"), (3, "frozen")])
def test_every_layer_asks_with_the_state_that_enters_it(top_k, match):
    method, x = make(top_k=top_k, query=match), images(3)
    method.backbone.cls_token.data[..., ::2] += 3  # so that it takes part in the maximum
    begin(method, 2, 2)
    nudge(method)
    frozen, gate = method.query(x), draw(3, DEPTH).softmax(1)
    got = method.backbone(x, PoolPlan(method, frozen, gate))
    for i in range(3):
        h = method.backbone.embed(x[i : i + 1]).h
        for layer, pool in enumerate(method.pools):
            query = {"max": h[0].amax(0), "cls": h[0, 0], "frozen": frozen[i]}[match]
            own = [cos(query, key) for key in pool.all_keys()]
            prompts = pool.all_prompts()
            if top_k:
                best = sorted(range(len(own)), key=lambda m: -own[m])[:top_k]
                prefix = torch.cat([prompts[m] for m in best], dim=1)
            else:
                prefix = sum(w * prompts[m] for m, w in enumerate(naive_softmax(own)))
            scaled = gate[i, layer] * prefix
            parts = tuple(p.view(-1, H, D // H).transpose(0, 1)[None] for p in scaled)
            plan = LayerPlan({layer: Edit(prefix=parts)})
            h = method.backbone.run(Tokens(h), plan, start=layer, stop=layer + 1).h
        want = method.backbone.pool(Tokens(h))[0]
        torch.testing.assert_close(got[i], want, atol=2e-5, rtol=1e-4)
    assert (got - method.backbone(x)).abs().max() > 1e-2


@pytest.mark.parametrize("top_k", [0, 2])
def test_a_gate_of_zero_leaves_zero_tokens_or_nothing(top_k):
    method, x = begin(make(top_k=top_k), 2), images(3)
    frozen, gate = method.query(x), torch.zeros(3, DEPTH)
    zeros = torch.zeros(1, H, P * max(top_k, 1), D // H)
    want = method.backbone(x, LayerPlan({layer: Edit(prefix=(zeros, zeros)) for layer in range(DEPTH)}))
    got = method.backbone(x, PoolPlan(method, frozen, gate))
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    plain = method.backbone(x)
    absent = method.backbone(x, PoolPlan(method, frozen, gate, absent=True))
    torch.testing.assert_close(absent, plain, atol=1e-5, rtol=1e-5)
    assert (want - plain).abs().max() > 1e-3


def test_absent_layers_are_absent_per_sample():
    method, x = begin(make(off="absent"), 2, 2), images(6)
    nudge(method)
    tasks, frozen = torch.zeros(6, dtype=torch.int64), method.query(x)
    with torch.no_grad():  # random features are much alike: a router that tells them apart
        method.router_weight[0].copy_(3 * draw(DEPTH, D))
        method.router_bias[0].copy_(-method.router_weight[0] @ frozen.mean(0))
    gate = method.gate(frozen, tasks)
    assert len({tuple(row) for row in gate.tolist()}) > 1
    got = method.features(x, tasks)
    for i in range(6):
        on = PoolPlan(method, frozen[i : i + 1], torch.ones(1, DEPTH))

        class Some:
            first = 0

            def __call__(self, layer, tokens, on=on, row=gate[i]):
                return on(layer, tokens) if row[layer] else None

        want = method.backbone(x[i : i + 1], Some())
        torch.testing.assert_close(got[i : i + 1], want, atol=1e-5, rtol=1e-4)


def test_gradients_reach_earlier_prompts_through_the_queries_of_later_layers():
    method, x = begin(make(), 2), images(3)
    h = []

    class Watched(PoolPlan):
        def __call__(self, layer, tokens):
            if layer == 2:
                h.append(tokens)
            return super().__call__(layer, tokens)

    plan = Watched(method, method.query(x), torch.full((3, DEPTH), 1 / DEPTH))
    method.backbone(x, plan)
    similarity = method.pools[2].similarity(plan._query(h[0]))
    similarity[:, 0].sum().backward()
    assert method.pools[0].prompts.grad.abs().max() > 0


def test_restricted_samples_see_the_prompts_of_their_task_only():
    method, x = begin(make(restrict=True), 2, 2), images(4)
    assert method.sizes.tolist() == [[4, 4, 4], [4, 7, 4]]
    first, second = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)
    with torch.no_grad():
        method.router_weight[0].zero_()
        method.router_bias[0].copy_(torch.tensor([0.0, 3.0, 0.0]))  # the grown layer is on
        method.router_weight[1].zero_()
        method.router_bias[1].copy_(torch.tensor([0.0, 3.0, 0.0]))
    before = [method.scores_given_task(x, t) for t in (first, second)]
    with torch.no_grad():
        method.pools[1].prompts += 1
    after = [method.scores_given_task(x, t) for t in (first, second)]
    assert torch.equal(before[0], after[0])
    assert (before[1] - after[1]).abs().min() > 0
    method.restrict = False
    assert (method.scores_given_task(x, first) - before[0]).abs().max() > 0


# Tasks


def test_only_the_most_important_layers_grow_and_freeze():
    method = begin(make(layer_topk=2, add_num=5), 2)
    assert method.pool_sizes() == [4, 4, 4]
    kept = [pool.all_prompts().detach().clone() for pool in method.pools]
    begin(method, 2, running=(0.5, 0.1, 0.4))
    assert method.pool_sizes() == [9, 4, 9]
    assert [len(pool.prompts) for pool in method.pools] == [5, 4, 5]
    begin(method, 2, running=(0.5, 0.3, 0.2))
    assert method.pool_sizes() == [14, 9, 9]
    assert [len(pool.frozen_prompts) for pool in method.pools] == [9, 4, 4]
    for pool, old in zip(method.pools, kept, strict=True):
        assert torch.equal(pool.all_prompts()[:4], old)
    assert torch.equal(method.layer_importance(), torch.tensor([[0.5, 0.1, 0.4], [0.5, 0.3, 0.2]]))


def test_training_moves_all_prompts_of_a_layer_that_never_grew_and_the_new_ones_of_one_that_did():
    method = learn(make(), 2)
    top = int(method.layer_importance()[0].argmax())
    before = [pool.all_prompts().detach().clone() for pool in method.pools]
    learn(method, 2)
    for layer, (pool, old) in enumerate(zip(method.pools, before, strict=True)):
        moved = (pool.all_prompts()[:4] - old).abs().amax((1, 2, 3)) > 0
        assert moved.tolist() == [layer != top] * 4
    assert method.pool_sizes() == [7 if layer == top else 4 for layer in range(DEPTH)]


def test_pools_of_the_newest_task_do_not_grow_before_its_evaluation():
    method = learn(make(), 2)
    assert method.pool_sizes() == [4, 4, 4]
    assert method.layer_importance().shape == (1, DEPTH)
    assert method.layer_importance().sum().item() == pytest.approx(1, abs=1e-5)
    learn(method, 2)
    assert sorted(method.pool_sizes()) == [4, 4, 7]


def test_tasks_are_those_of_the_nearest_class_means():
    method, x = begin(make(), 2, 1, 3), images(20, seed=4)
    tasks_of_classes = [0, 0, 1, 2, 2, 2]
    means = []
    for i, classes in enumerate((range(2), range(2, 3), range(3, 6))):
        data = task_of(i, classes).train
        means += [method.backbone(data.x[data.y == c]).mean(0) for c in classes]
    query = method.backbone(x)
    want = [tasks_of_classes[max(range(6), key=lambda c: cos(query[i], means[c]))] for i in range(20)]
    assert method.infer_task(x).tolist() == want
    for i, classes in enumerate((range(2), range(2, 3), range(3, 6))):
        train = task_of(i, classes).train
        assert (method.infer_task(train.x) == i).float().mean() > 0.5
    torch.testing.assert_close(method.scores(x), method.scores_given_task(x, method.infer_task(x)))


def test_samples_are_scored_under_the_router_of_their_own_task():
    method, x = begin(make(), 2, 2), images(6)
    with torch.no_grad():
        for t in range(2):
            method.router_bias[t].copy_(5 * torch.eye(DEPTH)[t])
    tasks = torch.tensor([1, 0, 0, 1, 1, 0])
    got = method.scores_given_task(x, tasks)
    for i, t in enumerate(tasks.tolist()):
        plan = PoolPlan(method, method.query(x[i : i + 1]), torch.eye(DEPTH)[t][None])
        want = method.head(method.backbone(x[i : i + 1], plan))
        torch.testing.assert_close(got[i : i + 1], want, atol=1e-5, rtol=1e-4)
    assert (got - method.scores_given_task(x, 1 - tasks)).abs().amax(1).min() > 1e-4


def test_prototype_readout():
    method, x = begin(make(readout="proto"), 2, 2), images(4)
    query, means = method.backbone(x), method.class_means.means()
    want = [[cos(query[i], m) for m in means] for i in range(4)]
    torch.testing.assert_close(method.scores(x), torch.tensor(want), atol=1e-5, rtol=1e-4)


# Losses


def test_loss_terms():
    method, x = begin(make(balance=0.3, ortho=0.7), 3, 2), images(4)
    y = torch.tensor([3, 4, 4, 3])
    torch.manual_seed(5)
    gate = method.training_gate(method.query(x))
    torch.manual_seed(5)
    losses = method.loss(x, y)
    assert set(losses) == {"ce", "balance", "ortho"}
    logits = method.backbone(x, PoolPlan(method, method.query(x), gate)) @ method.head.weight[1].T
    torch.testing.assert_close(losses["ce"], F.cross_entropy(logits + method.head.bias[1], y - 3))
    mean = gate.detach().mean(0)
    want = 0.3 * sum((float(m) - 1 / DEPTH) ** 2 for m in mean) / DEPTH
    assert losses["balance"].item() == pytest.approx(want, rel=1e-4)
    assert losses["ortho"].item() == pytest.approx(0.7 * method.pools[1].overlap().item(), rel=1e-5)
    torch.testing.assert_close(method.running, mean)
    torch.stack(list(losses.values())).sum().backward()
    for pool in method.pools:
        assert pool.prompts.grad.abs().max() > 0
        assert pool.keys.grad.abs().max() > 0
    assert method.router_weight[1].grad.abs().max() > 0
    assert method.noise_std.grad.abs() > 0
    assert method.router_weight[0].grad is None
    assert method.head.weight[0].grad is None
    assert method.head.weight[1].grad.abs().max() > 0


def test_the_overlap_is_the_mean_over_grown_layers_and_0_in_the_first_task():
    method = begin(make(layer_topk=2), 2)
    assert method.loss(images(2), torch.tensor([0, 1]))["ortho"] == 0
    begin(method, 2, running=(0.1, 0.5, 0.4))
    want = (method.pools[1].overlap() + method.pools[2].overlap()) / 2
    torch.testing.assert_close(method.overlap(), want)


def test_the_pull_moves_keys_towards_the_queries_that_selected_them():
    method, x = begin(make(top_k=2, key_pull=0.4), 2), images(4)
    torch.manual_seed(5)
    gate = method.training_gate(method.query(x))
    plan = PoolPlan(method, method.query(x), gate)
    method.backbone(x, plan)
    torch.manual_seed(5)
    losses = method.loss(x, torch.tensor([0, 1, 0, 1]))
    similarity = torch.stack(plan.similarity)
    assert similarity.shape == (DEPTH, 4, 2)
    torch.testing.assert_close(losses["pull"], 0.4 * (1 - similarity).mean())
    losses["pull"].backward()
    assert all(pool.keys.grad.abs().max() > 0 and pool.prompts.grad is None for pool in method.pools)
    first = method.pools[0]
    query = method.backbone.embed(x).h.amax(1)
    before = first.select(query, 2)[1].sum()
    with torch.no_grad():
        first.keys -= first.keys.grad
    assert first.select(query, 2)[1].sum() > before


# Stages


class Snapshots(Callback):
    """The learned state after the last step of every stage."""

    def __init__(self, method):
        self.method, self.states, self.starts = method, {}, {}

    def on_stage_start(self, task, stage, step, steps):
        self.starts[stage.name] = self._state()
        self.states[stage.name] = None

    def on_step(self, position, losses, optimizer, n):
        self.states[list(self.states)[position.stage]] = self._state()

    def _state(self):
        return {k: v.clone() for k, v in self.method.learned_state().items()}


def test_the_main_stage_leaves_other_rows_and_alignment_everything_but_the_head():
    method = learn(make(), 2)
    callback = Snapshots(method)
    at_rest = {k: v.clone() for k, v in method.learned_state().items()}
    frozen = {k: v.clone() for k, v in method.backbone.state_dict().items()}
    learn(method, 2, callback=callback)
    assert list(callback.states) == ["fit", "align"]
    fit, aligned = callback.states["fit"], callback.states["align"]
    for key in ("head.weight.0", "head.bias.0"):
        assert torch.equal(fit[key], at_rest[key])
        assert not torch.equal(aligned[key], fit[key])
    assert not torch.equal(fit["head.weight.1"], callback.starts["fit"]["head.weight.1"])
    start = callback.starts["align"]
    for key, value in aligned.items():
        if not key.startswith("head."):
            assert torch.equal(value, start[key]), key
    assert len(start["alignment.gaussians.means"]) == 4
    for key, value in method.backbone.state_dict().items():
        assert torch.equal(value, frozen[key]), key


def test_a_one_class_task_does_not_move_rows_of_other_classes_in_the_main_stage():
    method = learn(make(), 2)
    callback, before = Snapshots(method), method.head.weight[0].detach().clone()
    learn(method, 1, callback=callback)
    assert torch.equal(callback.states["fit"]["head.weight.0"], before)


def test_the_first_task_has_no_alignment_and_gets_its_statistics_at_the_end():
    method = begin(make(), 2)
    assert [stage.name for stage in method.stages(task_of(0, range(2)))] == ["fit"]
    method = learn(make(), 3)
    assert len(method.alignment.gaussians) == 3
    data = task_of(0, range(3)).train
    features = method.features(data.x, method.infer_task(data.x)).detach()
    for c in range(3):
        own = features[data.y == c]
        torch.testing.assert_close(method.alignment.gaussians.means[c], own.mean(0), atol=1e-5, rtol=1e-5)
        factor = method.alignment.gaussians.factors[c]
        want = own.T.cov() + 2e-4 * torch.eye(D)
        torch.testing.assert_close(factor @ factor.T, want, atol=1e-5, rtol=1e-4)


def test_alignment_recipe():
    method = begin(make(align={"epochs": 7, "lr": 0.02, "samples": 11}), 2, 3)
    fit, align = method.stages(task_of(1, range(2, 5)))
    assert fit.recipe is None
    assert (align.recipe.epochs, align.recipe.batch_size, align.recipe.lr) == (7, 11, 0.02)
    assert (align.recipe.optimizer, align.recipe.momentum, align.recipe.schedule) == ("sgd", 0.9, "cosine_per_epoch")
    assert align.recipe.weight_decay == 0
    assert len(align.data) == 5 * 11
    assert {id(p) for p in align.params} == {id(p) for p in method.head.parameters()}
    assert all(p.requires_grad for p in align.params)


def test_frozen_features_do_not_change_and_lookups_agree_with_them():
    method, x = learn(make(), 2), images(5)
    before = method.prototype_scores(x)
    learn(method, 2)
    method.frozen.feature_cache = None
    torch.testing.assert_close(method.prototype_scores(x)[:, :2], before, atol=1e-6, rtol=1e-6)


def test_everything_learned_survives_saving(tmp_path):
    method, x = learn(make(), 2, 2, 1), images(8)
    torch.save(method.learned_state(), tmp_path / "state.pt")
    twin = make()
    twin.load_learned_state(torch.load(tmp_path / "state.pt"))
    assert torch.equal(twin.scores(x), method.scores(x))
    assert torch.equal(twin.infer_task(x), method.infer_task(x))
    assert torch.equal(twin.layer_importance(), method.layer_importance())
    assert twin.pool_sizes() == method.pool_sizes()
    learn(twin, 2)
    learn(method, 2)
    torch.testing.assert_close(twin.scores(x), method.scores(x))


# Sizes and options


@pytest.fixture(scope="module")
def vit_b():
    with torch.device("meta"):
        arch = Arch(dim=768, depth=12, heads=12, mlp_dim=3072)
        return VisionBackbone(arch, patch=16, preprocess=Preprocess(224, (0.5,) * 3, (0.5,) * 3))


@pytest.mark.parametrize(
    ("options", "start", "growth"),
    [
        ({}, 1_013_760, 422_400),
        ({"pool_size": 5, "layer_topk": 1, "add_num": 1}, 506_880, 8_448),
        ({"pool_size": 5, "layer_topk": 3, "add_num": 15, "top_k": 5}, 506_880, 380_160),
        ({"pool_size": 5, "layer_topk": 3, "add_num": 3}, 506_880, 76_032),
        ({"pool_size": 5, "length": 50, "layer_topk": 1, "add_num": 2, "top_k": 1}, 4_654_080, 155_136),
    ],
)
def test_numbers_of_parameters_on_a_vit_b(vit_b, options, start, growth):
    method = LiEPrompt(vit_b, **options)

    def prompts():
        return sum(v.numel() for v in method.pools.state_dict().values())

    for index in range(3):
        if index:
            method.importance = torch.cat([method.importance, torch.rand(1, 12)])
        method.begin_task(LearnTask(index, range(5 * index, 5 * index + 5), None, None))
        assert prompts() == start + index * growth
        routers = [*method.router_weight, *method.router_bias]
        assert sum(p.numel() for p in routers) == 9_228 * (index + 1)
        assert sum(p.numel() for p in routers if p.requires_grad) == 9_228
        assert sum(p.numel() for p in method.head.parameters()) == 769 * 5 * (index + 1)
    grown = sum(len(pool.frozen_keys) > 0 for pool in method.pools)
    assert method.layer_topk <= grown <= 2 * method.layer_topk
    trainable = start * (12 - grown) // 12 + growth * grown // method.layer_topk
    assert sum(p.numel() for p in method.pools.parameters()) == trainable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, r"method.top_k must lie in \[0, pool_size = 4\], got 5"),
        ({"top_k": -1}, r"method.top_k must lie"),
        ({"layer_topk": 4}, r"method.layer_topk must lie in \[0, 3\]"),
        ({"layer_topk": -1}, r"method.layer_topk"),
        ({"add_num": 0}, r"method.add_num must be at least 1"),
        ({"pool_size": 0}, r"method.pool_size must be at least 1"),
        ({"length": 0}, r"method.length must be at least 1"),
        ({"align": {"lr": 0.0}}, r"method.align.lr: .*greater than 0, got 0.0"),
        ({"key_pull": 0.1}, r"method.key_pull=0.1 pulls selected keys: set method.top_k"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
