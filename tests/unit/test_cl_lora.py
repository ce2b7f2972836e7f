"""CL-LoRA: its formulas and its two steps, written out naively, against what it computes."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from ostinato.backbones import Arch, Edit, LayerPlan, LinearEdit, Preprocess, VisionBackbone
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError
from ostinato.methods import cl_lora
from ostinato.methods.base import LearnTask
from ostinato.methods.cl_lora import CLLoRA
from ostinato.nn.distillation import distillation
from ostinato.nn.proxy import CosineProxy
from ostinato.registry import check_options
from ostinato.training.loop import Settings
from ostinato.training.loop import learn_task as train

D, DEPTH, R = 16, 4, 3
OPTIONS = {"shared_layers": (0, 1), "specific_layers": (2, 3), "rank": R}
GAP = {"shared_layers": (0,), "specific_layers": (3, 2)}
"""A layer without an adapter between the two groups, and an order of its own."""

CPU = torch.device("cpu")


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Pairs(Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, key):
        i = key[0] if isinstance(key, tuple) else key
        return self.x[i], int(self.y[i])


def task_of(index, classes, n=12):
    x = images(n, seed=100 + index)
    y = torch.tensor([classes[i % len(classes)] for i in range(n)])

    def batches():
        for part in torch.arange(n).split(5):
            yield x[part], y[part]

    return LearnTask(index, classes, Pairs(x, y), batches)


def make(**options):
    torch.manual_seed(3)
    return CLLoRA(random_backbone(depth=DEPTH), **(OPTIONS | options)).eval()


def nudge(method, seed=7, size=0.2):
    """Training, as far as these tests care: everything trainable moves."""
    with torch.no_grad():
        for i, p in enumerate(p for p in method.parameters() if p.requires_grad):
            p += size * draw(*p.shape, seed=seed + i)
    return method


def begin(method, *sizes, moved=True):
    """Tasks of the given sizes; every one but the last is closed, and moved first."""
    for n in sizes:
        if method.n_tasks and moved:
            nudge(method, seed=31 * method.n_tasks)
        torch.manual_seed(method.n_tasks)
        method.begin_task(task_of(method.n_tasks, range(method.n_seen, method.n_seen + n)))
    return method


def learned(*sizes, settings=None, **options):
    """A method taught by the engine."""
    method = make(**options)
    settings = settings or Settings(CPU, torch.float32, overrides={"epochs": 3, "batch_size": 5, "lr": 0.1})
    for i, n in enumerate(sizes):
        train(method, task_of(i, range(method.n_seen, method.n_seen + n)), settings)
    return method


def plan_of(method, up, task=None):
    """The edits of the pass of one task, written out layer by layer."""
    edits = {}
    for i, layer in enumerate(method.shared_layers):
        q, v = (LinearEdit(down=method.shared_down[i, j], up=up[i, j]) for j in range(2))
        edits[layer] = Edit(linear={"q": q, "v": v})
    if task is not None:
        for i, layer in enumerate(method.specific_layers):
            q, v = (
                LinearEdit(
                    down=method.downs[task][i, j],
                    up=method.ups[task][i, j] * (method.mu[task][2 * j, i] if len(method.mu) else 1),
                )
                for j in range(2)
            )
            edits[layer] = Edit(linear={"q": q, "v": v})
    return LayerPlan(edits)


def feature(method, x, task):
    return method.backbone(x, plan_of(method, method.shared_up, task))


def early(method, x, up):
    """What leaves the shared layers, in a pass of its own."""
    backbone = method.backbone
    return backbone.pool(backbone.run(backbone.embed(x), plan_of(method, up), stop=method.exit))


def logits(method, f):
    return method.proxy.scale * F.normalize(f, dim=1) @ F.normalize(method.proxy.weight, dim=1).T


def naive_kd(method, x):
    """-kd mean_b sum_c p_c log q_c, with a student pass of its own."""
    with torch.no_grad():
        old = early(method, x, method.teacher_up)
    p = (logits(method, old) / method.tau).softmax(1)
    q = (logits(method, early(method, x, method.shared_up)) / method.tau).softmax(1)
    return -method.kd * (p * q.log()).sum(1).mean()


def naive_ce(method, x, y):
    local = y - (method.n_seen - int(method.task_sizes[-1]))
    z = logits(method, feature(method, x, method.n_tasks - 1))
    return -z.log_softmax(1)[torch.arange(len(y)), local].mean()


def naive_ortho(method):
    mu = [m.flatten() / (m.norm() + 1e-8) for m in method.mu]
    return method.ortho * sum((mu[-1] @ old).abs() for old in mu[:-1]) / (len(mu) - 1)


# What an adapter is


@pytest.mark.parametrize("down_init", ["uniform", "normal"])
def test_down_projections_have_orthonormal_rows_of_their_own(down_init):
    method = begin(make(down_init=down_init), 2, 2, moved=False)
    stacks = [p.detach() for p in (method.shared_down, *method.downs)]
    for p in stacks:
        assert p.shape == (2, 2, R, D)
        torch.testing.assert_close(p @ p.mT, torch.eye(R).expand(2, 2, R, R), atol=1e-5, rtol=0)
    flat = torch.stack(stacks).flatten(0, 2)
    for i in range(len(flat)):
        for j in range(i):
            assert (flat[i] - flat[j]).abs().max() > 0.05, "every adapter draws its own"
    first = method.shared_down[:, :, 0]
    constant = first.sum(-1).abs() / math.sqrt(D)  # cosine with the all-ones vector
    assert (constant > 0.7).all() == (down_init == "uniform")


def test_before_the_first_step_features_are_those_of_the_plain_backbone():
    method = begin(make(), 2)
    x = images(3)
    tokens = method.backbone.run(method.backbone.embed(x), method.shared(method.shared_up), stop=method.exit)
    torch.testing.assert_close(method.newest(tokens), method.backbone(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(method.features(x)[0], method.backbone(x), atol=1e-6, rtol=1e-6)


def test_a_new_task_starts_from_fresh_adapters_on_the_shared_ones():
    method = nudge(begin(make(), 2))
    up, scale = method.shared_up.detach().clone(), method.proxy.scale.item()
    begin(method, 3, moved=False)
    assert torch.equal(method.shared_up, up)
    assert torch.equal(method.teacher_up, up)
    assert method.shared_up.requires_grad
    assert not method.ups[1].any()
    assert method.ups[0].any()
    assert scale != 1
    assert method.proxy.scale.item() == 1
    assert method.proxy.weight.shape == (3, D)
    assert method.proxy.weight.abs().max() <= D**-0.5


def test_block_weights_start_uniform_between_a_half_and_one_and_a_half():
    mu = begin(make(), *[2] * 20, moved=False).block_weights()
    assert mu.shape == (20, 3, 2)
    assert 0.5 <= mu.min() < 0.6
    assert 1.4 < mu.max() <= 1.5


@pytest.mark.parametrize(("rank", "trained", "stored"), [(8, 221_202, 147_456 + 18), (10, 276_498, 184_320 + 18)])
def test_parameter_counts_on_vit_b(rank, trained, stored):
    with torch.device("meta"):
        backbone = VisionBackbone(
            Arch(dim=768, depth=12, heads=12, mlp_dim=3072),
            patch=16,
            preprocess=Preprocess(224, (0.5,) * 3, (0.5,) * 3),
        )
    method = begin(CLLoRA(backbone, rank=rank), 5, 5, moved=False)
    n = sum(p.numel() for name, p in method.named_parameters() if p.requires_grad and not name.startswith("proxy."))
    assert n == trained
    assert sum(bank[0].numel() for bank in (method.downs, method.ups, method.mu)) == stored
    assert method.proxy.weight.numel() + method.proxy.scale.numel() == 5 * 768 + 1


# Losses


@pytest.mark.parametrize("options", [{}, GAP])
def test_loss_terms(options):
    method, x = begin(make(kd=3.0, tau=1.5, ortho=0.2, **options), 2, 2, 3), images(6)
    nudge(method)
    y = torch.tensor([4, 5, 6, 6, 4, 5])
    losses = method.loss(x, y)
    assert set(losses) == {"ce", "kd", "ortho"}
    torch.testing.assert_close(losses["ce"], naive_ce(method, x, y))
    torch.testing.assert_close(losses["kd"], naive_kd(method, x))
    torch.testing.assert_close(losses["ortho"], naive_ortho(method))
    flipped = begin(make(ortho=0.2), 2, 2, moved=False)
    with torch.no_grad():
        flipped.mu[1].neg_()
    assert flipped.loss(x, y % 2 + 2)["ortho"] > 0.1, "opposite weights are no more orthogonal than equal ones"


def test_the_first_task_has_cross_entropy_alone():
    method = nudge(begin(make(), 3))
    y = torch.tensor([0, 1, 2, 1])
    losses = method.loss(images(4), y)
    assert set(losses) == {"ce"}
    torch.testing.assert_close(losses["ce"], naive_ce(method, images(4), y))
    stage = next(iter(method.stages(task_of(0, range(3)))))
    assert stage.step is type(stage)(method.loss).step


def test_terms_can_be_left_out():
    x, y = images(4), torch.tensor([2, 3, 3, 2])
    assert set(begin(make(kd=0), 2, 2).loss(x, y)) == {"ce", "ortho"}
    assert set(begin(make(ortho=0), 2, 2).loss(x, y)) == {"ce", "kd"}
    fixed = nudge(begin(make(block_weights=False), 2, 2))
    assert set(fixed.loss(x, y)) == {"ce", "kd"}
    assert len(fixed.mu) == 0
    assert torch.equal(fixed.block_weights(), torch.ones(2, 3, 2))
    torch.testing.assert_close(fixed.loss(x, y)["ce"], naive_ce(fixed, x, y))
    torch.testing.assert_close(fixed.features(x)[1], feature(fixed, x, 1), atol=1e-6, rtol=1e-5)


# Reassignment and the two steps


def run_stage(method, task):
    (stage,) = method.stages(task)
    return stage


def kd_gradients(method, x, y, **seen):
    """Gradients that the first optimiser step sees, by parameter name; None where it skips."""
    method.zero_grad(set_to_none=True)
    stage = run_stage(
        method, task_of(method.n_tasks - 1, range(method.n_seen - int(method.task_sizes[-1]), method.n_seen))
    )
    stage.backward(stage.loss(x, y))
    named = {n: p for n, p in method.named_parameters() if p.requires_grad}
    grads = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            grads.append({n: None if p.grad is None else p.grad.clone() for n, p in named.items()})

    stage.step(Spy(list(named.values()), lr=1.0))
    return grads


def test_omega_has_mean_one_and_follows_the_teachers_row_norms():
    method = begin(make(), 2, 2)
    with torch.no_grad():
        method.teacher_up[0, 1, 5] = 0
    omega = method.omega()
    assert omega.shape == (2, 2, D)
    torch.testing.assert_close(omega.mean(-1), torch.ones(2, 2))
    for i in range(2):
        for j in range(2):
            rows = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in method.teacher_up[i, j]]
            want = torch.tensor([D * n / sum(rows) for n in rows])
            torch.testing.assert_close(omega[i, j], want)
    assert omega[0, 1, 5] == 0
    assert omega.std() > 0.1


def test_a_teacher_that_is_zero_reassigns_nothing():
    method = begin(make(), 2, 2, moved=False)
    assert torch.equal(method.omega(), torch.ones(2, 2, D))
    with torch.no_grad():
        method.teacher_up[1] = draw(2, D, R)
    omega = method.omega()
    assert torch.equal(omega[0], torch.ones(2, D))
    assert omega[1].std() > 0.1
    assert omega.isfinite().all()


@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("reassign", [False, True])
def test_the_gradient_of_distillation_is_that_of_a_second_student_pass_with_rows_scaled(reassign, detached):
    method, x = nudge(begin(make(reassign=reassign, teacher_detached=detached), 2, 3)), images(6)
    y = torch.tensor([2, 3, 4, 4, 3, 2])
    kd, ce = kd_gradients(method, x, y)
    reached = {"shared_up": method.shared_up, "proxy.weight": method.proxy.weight, "proxy.scale": method.proxy.scale}
    value = naive_kd(method, x)
    if detached:
        with torch.no_grad():
            p = (logits(method, early(method, x, method.teacher_up)) / method.tau).softmax(1)
        q = (logits(method, early(method, x, method.shared_up)) / method.tau).log_softmax(1)
        value = -method.kd * (p * q).sum(1).mean()
    want = dict(zip(reached, torch.autograd.grad(value, list(reached.values())), strict=True))
    if reassign:
        want["shared_up"] = method.omega()[..., None] * want["shared_up"]
    assert {n for n, g in kd.items() if g is not None} == set(reached)
    for n in reached:
        assert want[n].abs().max() > 1e-6
        torch.testing.assert_close(kd[n], want[n], atol=1e-7, rtol=1e-4)
    named = {n: p for n, p in method.named_parameters() if p.requires_grad}
    value = naive_ce(method, x, y) + naive_ortho(method)
    wants = torch.autograd.grad(value, list(named.values()))
    for (n, g), w in zip(ce.items(), wants, strict=True):
        torch.testing.assert_close(g, w, atol=1e-7, rtol=1e-4, msg=n)


def test_the_teachers_branch_trains_the_head_unless_detached():
    x, y = images(6), torch.tensor([2, 3, 4, 4, 3, 2])
    methods = [nudge(begin(make(teacher_detached=d), 2, 3)) for d in (False, True)]
    open_, closed = (kd_gradients(m, x, y)[0] for m in methods)
    torch.testing.assert_close(open_["shared_up"], closed["shared_up"])
    assert (open_["proxy.weight"] - closed["proxy.weight"]).norm() > 0.1 * closed["proxy.weight"].norm()


def test_the_step_of_distillation_leaves_task_adapters_and_their_momentum_alone():
    method, x = nudge(begin(make(), 2, 2)), images(6)
    y = torch.tensor([2, 3, 2, 3, 3, 2])
    named = {n: p for n, p in method.named_parameters() if p.requires_grad}
    own = [n for n in named if n.split(".")[0] in ("downs", "ups", "mu")]
    assert len(own) == 3
    moments = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            buffers = {n: self.state[p].get("momentum_buffer") for n, p in named.items()}
            moments.append(
                {n: (p.detach().clone(), None if (b := buffers[n]) is None else b.clone()) for n, p in named.items()}
            )

    optimizer = Spy(list(named.values()), lr=0.1, momentum=0.9, weight_decay=0.1)
    stage = run_stage(method, task_of(1, range(2, 4)))
    for _ in range(2):
        before = {n: p.detach().clone() for n, p in named.items()}
        state = {n: optimizer.state[p].get("momentum_buffer") for n, p in named.items() if p in optimizer.state}
        state = {n: b.clone() for n, b in state.items()}
        optimizer.zero_grad(set_to_none=True)
        stage.backward(stage.loss(x, y))
        stage.step(optimizer)
        first, second = moments[-2:]
        for n in own:
            assert torch.equal(first[n][0], before[n]), n
            assert first[n][1] is None if n not in state else torch.equal(first[n][1], state[n]), n
            assert not torch.equal(second[n][0], before[n]), n
        for n in set(named) - set(own):
            assert not torch.equal(first[n][0], before[n]), n
            assert not torch.equal(second[n][0], first[n][0]), n
    assert len(moments) == 4


@pytest.mark.parametrize("micro", [1, 2])
def test_training_equals_two_momentum_steps_written_by_hand(micro):
    """Both gradients at the same weights, one momentum, decay in each step; micro-batches add up to the batch."""
    lr, m, wd = 0.05, 0.9, 0.01
    method = nudge(begin(make(ortho=0.1), 2, 2))
    twin = copy.deepcopy(method)
    named = {n: p for n, p in method.named_parameters() if p.requires_grad}
    theta = {n: p for n, p in twin.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(list(named.values()), lr=lr, momentum=m, weight_decay=wd)
    stage = run_stage(method, task_of(1, range(2, 4)))
    rows = twin.teacher_up.norm(dim=-1, keepdim=True)
    omega = D * rows / rows.sum(-2, keepdim=True)
    velocity = {}

    def hand(grads):
        for n, g in grads.items():
            g = g + wd * theta[n].detach()
            velocity[n] = m * velocity[n] + g if n in velocity else g
            with torch.no_grad():
                theta[n] -= lr * velocity[n]

    for step in range(3):
        x, y = images(6, seed=step), torch.tensor([2, 3, 3, 2, 2, 3])
        optimizer.zero_grad(set_to_none=True)
        for xs, ys in zip(x.chunk(micro), y.chunk(micro), strict=True):
            stage.backward({n: v / micro for n, v in stage.loss(xs, ys).items()})
        stage.step(optimizer)

        reached = ["shared_up", "proxy.weight", "proxy.scale"]
        kd = dict(zip(reached, torch.autograd.grad(naive_kd(twin, x), [theta[n] for n in reached]), strict=True))
        kd["shared_up"] = omega * kd["shared_up"]
        value = naive_ce(twin, x, y) + naive_ortho(twin)
        ce = dict(zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True))
        hand(kd)
        hand(ce)
        for n, p in named.items():
            torch.testing.assert_close(p, theta[n], atol=2e-6, rtol=1e-4, msg=f"{n} after step {step}")


def test_the_engine_trains_alike_with_micro_batches():
    overrides = {"epochs": 2, "batch_size": 6, "lr": 0.05}
    one, two = (learned(2, 2, settings=Settings(CPU, torch.float32, overrides=overrides, accumulate=n)) for n in (1, 2))
    for (n, p), (_, q) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-5, rtol=1e-3, msg=n)
    assert (one.shared_up - learned(2).shared_up).abs().max() > 1e-4


# Over tasks


def test_later_tasks_leave_what_is_frozen_bit_equal():
    method = make()
    down = method.shared_down.clone()
    settings = Settings(CPU, torch.float32, overrides={"epochs": 3, "batch_size": 5, "lr": 0.1})
    train(method, task_of(0, range(2)), settings)
    own = [bank[0].detach().clone() for bank in (method.downs, method.ups, method.mu)]
    means, up = method.class_means.means(), method.shared_up.detach().clone()
    train(method, task_of(1, range(2, 4)), settings)
    assert torch.equal(method.shared_down, down)
    assert torch.equal(method.teacher_up, up)
    for bank, before in zip((method.downs, method.ups, method.mu), own, strict=True):
        assert torch.equal(bank[0], before)
        assert not bank[0].requires_grad
    assert torch.equal(method.class_means.means()[:2], means), "class means are not refreshed"
    assert not torch.equal(method.shared_up, up)
    assert method.ups[1].any()


def test_class_means_are_those_of_the_tasks_own_feature():
    method = learned(2, 3)
    task = task_of(1, range(2, 5))
    x, y = task.train.x, task.train.y
    with torch.no_grad():
        f = feature(method, x, 1)
    for c in range(2, 5):
        torch.testing.assert_close(method.class_means.means()[c], f[y == c].mean(0), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("budget", [1, 2 * 5 * 5 * D, 2**25])
@pytest.mark.parametrize("options", [{}, GAP])
@torch.no_grad()
def test_scoring_tasks_at_once_equals_a_loop_over_tasks(monkeypatch, budget, options):
    """Also where layers without an adapter lie between, and with a task of another size."""
    monkeypatch.setattr(cl_lora, "BUDGET", budget)
    method, x = nudge(begin(make(**options), 2, 3, 1)), images(5)
    method.class_means.update(draw(6, D), torch.arange(6))
    got = method.scores(x)
    assert got.shape == (5, 6)
    first = 0
    for task, n in enumerate((2, 3, 1)):
        f = feature(method, x, task)
        want = F.normalize(f, dim=1) @ F.normalize(method.class_means.means()[first : first + n], dim=1).T
        torch.testing.assert_close(got[:, first : first + n], want, atol=1e-6, rtol=0)
        torch.testing.assert_close(method.features(x)[task], f, atol=2e-6, rtol=1e-5)
        first += n
    assert (method.features(x)[0] - method.features(x)[1]).abs().max() > 1e-2


@pytest.mark.parametrize("options", [{}, GAP])
def test_layers_below_the_specific_ones_run_once(options):
    method, x = begin(make(**options), 2, 2, 2), images(3)
    seen = {}
    for i, block in enumerate(method.backbone.encoder.blocks):
        block.register_forward_pre_hook(lambda _, args, i=i: seen.setdefault(i, []).append(tuple(args[0].shape[:-2])))
    method.scores(x)
    assert seen == {i: [(3,) if i < 2 else (3, 3)] for i in range(DEPTH)}


def test_training_passes_no_layer_more_often_than_needed():
    """The student's early exit costs no pass; the teacher passes the shared layers alone."""
    method, x = begin(make(), 2, 2), images(3)
    seen = [0] * DEPTH
    for i, block in enumerate(method.backbone.encoder.blocks):
        block.register_forward_pre_hook(lambda _, args, i=i: seen.__setitem__(i, seen[i] + 1))
    method.loss(x, torch.tensor([2, 3, 2]))
    assert seen == [2, 2, 1, 1]


def test_a_ragged_last_task_and_a_task_of_one_class():
    method = learned(3, 2, 1)
    up = learned(3, 2).shared_up
    assert method.scores(images(4)).shape == (4, 6)
    assert method.scores(images(4)).isfinite().all()
    assert not list(method.stages(task_of(2, range(5, 6))))
    assert torch.equal(method.shared_up, up)
    assert not method.ups[2].any()
    task = task_of(2, range(5, 6))
    assert (method.scores(task.train.x)[:, 5] > 0.5).all()
    settings = Settings(CPU, torch.float32, overrides={"epochs": 2, "batch_size": 5, "lr": 0.1})
    train(method, task_of(3, range(6, 10)), settings)
    assert method.scores(images(4)).shape == (4, 10)


def test_a_one_class_first_task_leaves_a_zero_teacher_that_trains_on():
    method = learned(1, 2)
    assert not method.teacher_up.any()
    assert all(p.isfinite().all() for p in method.parameters())
    assert method.shared_up.any()


def test_the_head_lives_for_one_task_and_survives_a_checkpoint_inside_it():
    method = nudge(begin(make(), 2, 3))
    state = {k: v.clone() for k, v in method.learned_state().items()}
    fresh = make()
    fresh.load_learned_state(state)
    x, y = images(4), torch.tensor([2, 3, 4, 4])
    for n, v in method.loss(x, y).items():
        assert torch.equal(fresh.loss(x, y)[n], v)
    assert {n for n, p in fresh.named_parameters() if p.requires_grad} == {
        n for n, p in method.named_parameters() if p.requires_grad
    }
    method.end_task(task_of(1, range(2, 5)))
    assert method.proxy.weight.shape == (0, D)
    fresh.load_learned_state(method.learned_state())
    assert fresh.proxy.weight.shape == (0, D)


def test_cosine_proxy_and_distillation():
    torch.manual_seed(0)
    proxy = CosineProxy(D)
    proxy.reset(4)
    with torch.no_grad():
        proxy.scale.fill_(2.5)
    f = draw(3, D)
    want = [[2.5 * float(torch.cosine_similarity(a, w, dim=0)) for w in proxy.weight.detach()] for a in f]
    torch.testing.assert_close(proxy(f), torch.tensor(want), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(proxy(7 * f), proxy(f))
    student, teacher = draw(3, 4, seed=1), draw(3, 4, seed=2)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    torch.testing.assert_close(distillation(student, teacher, 3.0), -(p * q.log()).sum() / 3)


# Analyses and options


def test_what_analyses_read():
    method = nudge(begin(make(), 2, 2))
    assert method.block_weights().shape == (2, 3, 2)
    norms = method.adapter_norms()
    assert norms.shape == (2, 2, 2)
    for t in range(2):
        assert torch.equal(method.block_weights()[t], method.mu[t])
        for i in range(2):
            for j, row in enumerate((0, 2)):
                product = method.mu[t][row, i] * method.ups[t][i, j] @ method.downs[t][i, j]
                torch.testing.assert_close(norms[t, i, j], product.detach().norm(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": D + 1}, "rank must be at most 16, the width"),
        ({"shared_layers": (0, 4)}, r"shared_layers must name layers in \[0, 3\]"),
        ({"specific_layers": (2, 2)}, "specific_layers must name layers"),
        ({"shared_layers": (0, 2)}, r"below all specific ones, got \[0, 2\] and \[2, 3\]"),
        ({"shared_layers": (3,), "specific_layers": (1, 2)}, "below all specific ones"),
        ({"shared_layers": ()}, "must each name a layer"),
        ({"specific_layers": ()}, "must each name a layer"),
        ({"kd": -1.0}, "must not be negative"),
        ({"ortho": -1.0}, "must not be negative"),
        ({"tau": 0.0}, r"method\.tau must be positive"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_down_init_is_one_of_two():
    with pytest.raises(InputError, match=r"method\.down_init"):
        check_options(CLLoRA, {"down_init": "haar"})
