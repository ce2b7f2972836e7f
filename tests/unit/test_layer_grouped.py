"""Layer-grouped prompts: formulas written out naively, what trains, what stays, and runs that stop anywhere."""

import math

import pytest
import torch
from torch.nn import functional as F

from ostinato.backbones import Arch, Edit, LayerPlan, Preprocess, VisionBackbone
from ostinato.contract import harness
from ostinato.contract.tiny_models import random_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.methods.layer_grouped import LayerGrouped, sinusoids
from ostinato.nn.task_weights import weights_by_probability, weights_by_similarity
from ostinato.training.callbacks import Callback
from ostinato.training.loop import Settings, learn_task

D, H, DEPTH, P = 16, 2, 6, 4
SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=3, overrides={"epochs": 2, "batch_size": 8, "lr": 0.01})


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make(**options):
    torch.manual_seed(3)
    options = {"length": P, "bottleneck": 3, "align": {"epochs": 2, "samples": 8}} | options
    return LayerGrouped(random_backbone(depth=DEPTH), **options).eval()


def task_of(index, classes):
    """A task whose images come in two batches, each class at least twice."""
    y = torch.tensor(list(classes)).repeat(3)
    x = images(len(y), seed=index)

    def batches():
        for rows in torch.arange(len(x)).split(4):
            yield x[rows], y[rows]

    return LearnTask(index, classes, None, batches)


def nudge(method, seed=7):
    """Training, as far as these tests care: everything that the main stage trains moves."""
    stage = next(iter(method.stages(task_of(method.n_tasks - 1, range(method.n_seen)))))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in stage.params:
            p += 0.3 * torch.randn(p.shape, generator=generator)


def taught(method, *sizes):
    """Tasks of these sizes without an engine: prepared, moved and closed, but for the alignment."""
    for size in sizes:
        task = task_of(method.n_tasks, range(method.n_seen, method.n_seen + size))
        method.begin_task(task)
        if (prepare := next(iter(method.stages(task))).prepare) is not None:
            prepare()
        nudge(method, seed=task.index)
        if method.alignment.aligns and task.index > 0:
            method.alignment.collect(task, method._newest_features)
        with torch.no_grad():
            method.end_task(task)
    return method


def begun(method, size=2):
    """The next task is begun and its prompts have moved."""
    method.begin_task(task_of(method.n_tasks, range(method.n_seen, method.n_seen + size)))
    nudge(method, seed=method.n_tasks)
    return method


def encoding(layer, dim=D):
    """E_l, entry by entry."""
    angle = [layer / 10000 ** (2 * (j // 2) / dim) for j in range(dim)]
    return torch.tensor([math.cos(a) if j % 2 else math.sin(a) for j, a in enumerate(angle)])


def group_prompts(method):
    """S (T, G, 2, P, D) of all tasks, the current one's after those that are kept."""
    if len(method.prompts) == method.n_tasks:
        return method.prompts
    return torch.cat([method.prompts, method._generated()[None]])


def mixed(method, weights, layer):
    """P^l (2, P, D) of one image by the formula, in loops over tasks, roles and positions."""
    group = method.layers.index(layer) * group_prompts(method).shape[1] // len(method.layers)
    prompts, alphas = group_prompts(method).detach(), [*method.alphas.detach()]
    if len(alphas) < method.n_tasks:
        alphas.append(method.alpha.detach())
    out = torch.zeros(prompts.shape[2:])
    for s in range(method.n_tasks):
        for role in range(2):
            for position in range(out.shape[1]):
                out[role, position] += weights[s] * (
                    prompts[s, group, role, position] + alphas[s][role] * encoding(layer)
                )
    return out


def prefixed(method, x, prompts):
    """Features of one image under prompts {layer: (2, P, D)}, split into heads by hand."""
    edits = {}
    for layer, p in prompts.items():
        keys, values = (torch.stack([part[:, h * D // H : (h + 1) * D // H] for h in range(H)])[None] for part in p)
        edits[layer] = Edit(prefix=(keys, values))
    return method.backbone(x[None], LayerPlan(edits))[0]


# The generator, the groups and the encoding


def test_with_nothing_learned_on_top_all_groups_equal_the_root():
    method = make()
    method.begin_task(task_of(0, range(2)))
    with torch.no_grad():
        method.alpha.zero_()
    assert method.root.std() > 0
    assert torch.equal(method.generator.up, torch.zeros_like(method.generator.up))
    assert method.generator.down.std() > 0
    for prompt in group_prompts(method)[0]:
        assert torch.equal(prompt, method.root)
    plan = method._plan(torch.ones(1, 1))
    for layer in range(DEPTH):
        for part, want in zip(plan(layer, None).prefix, method.root, strict=True):
            assert torch.equal(part[0].transpose(0, 1).reshape(P, D), want)


def test_a_group_prompt_is_the_root_plus_a_bottleneck_of_its_normalised_rows():
    method = begun(make())
    got = group_prompts(method)
    assert got.shape == (1, 3, 2, P, D)
    for g in range(3):
        for role in range(2):
            for position in range(P):
                row = method.root[role, position].detach().double()
                normed = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
                hidden = F.gelu(method.generator.down[g].detach().double() @ normed)
                want = row + method.generator.up[g].detach().double() @ hidden
                torch.testing.assert_close(got[0, g, role, position].double(), want, atol=1e-5, rtol=1e-5)
    assert (got[0, 0] - got[0, 1]).abs().max() > 0.1


def test_a_zero_root_has_finite_prompts_and_gradients():
    method = begun(make())
    with torch.no_grad():
        method.root.zero_()
    method.loss(images(4), torch.tensor([0, 1, 0, 1]))["ce"].backward()
    assert method.root.grad.isfinite().all()


def test_sinusoids():
    got = sinusoids(range(5), D)
    for layer in range(5):
        torch.testing.assert_close(got[layer], encoding(layer), atol=1e-6, rtol=1e-6)
    assert sinusoids([2], 5).shape == (1, 5)


@pytest.mark.parametrize(
    ("groups", "layers", "want"),
    [
        (3, None, {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}),
        (1, None, dict.fromkeys(range(6), 0)),
        (6, None, {i: i for i in range(6)}),
        (4, None, {0: 0, 1: 0, 2: 1, 3: 2, 4: 2, 5: 3}),
        (2, (5, 1, 2), {1: 0, 2: 0, 5: 1}),
    ],
)
def test_groups_are_neighbouring_layers(groups, layers, want):
    method = begun(make(groups=groups, layers=layers))
    assert {layer: group for layer, (_, group) in method.places.items()} == want
    x = images(1)[0]
    prompts = {layer: mixed(method, [1.0], layer) for layer in want}
    torch.testing.assert_close(method.features(x[None])[0], prefixed(method, x, prompts), atol=1e-5, rtol=1e-4)


def test_layers_of_a_group_differ_by_their_encoding_alone():
    method = taught(make(), 2, 2)
    plan = method._plan(torch.tensor([[0.3, 0.7]]))
    rows = [torch.stack(plan(layer, None).prefix, 1)[0].transpose(1, 2).reshape(2, P, D) for layer in range(DEPTH)]
    alpha = 0.3 * method.alphas[0] + 0.7 * method.alphas[1]
    for one, other in ((0, 1), (2, 3), (4, 5)):
        step = alpha[:, None] * (encoding(other) - encoding(one))
        torch.testing.assert_close(rows[other] - rows[one], step[:, None].expand(2, P, D), atol=1e-6, rtol=1e-5)
    off = taught(make(position=False), 2, 2)
    plan = off._plan(torch.tensor([[0.3, 0.7]]))
    assert torch.equal(plan(0, None).prefix[0], plan(1, None).prefix[0])
    assert not torch.equal(plan(1, None).prefix[0], plan(2, None).prefix[0])


def test_a_group_per_layer_without_root_is_an_independent_prefix_per_layer():
    """Features and gradients, and none of one layer's prompt on another's."""
    method = begun(make(groups=DEPTH, root=False, position=False, fusion="uniform"))
    assert method.root.shape == (DEPTH, 2, P, D)
    assert method.root.std() > 0
    x, y = images(4), torch.tensor([0, 1, 0, 1])
    method.loss(x, y)["ce"].backward()
    own = method.root.detach().clone().requires_grad_()
    features = torch.stack([prefixed(method, row, dict(enumerate(own))) for row in x])
    torch.testing.assert_close(method.features(x), features, atol=1e-5, rtol=1e-4)
    F.cross_entropy(F.linear(features, method.head.weight[0], method.head.bias[0]), y).backward()
    torch.testing.assert_close(method.root.grad, own.grad, atol=1e-6, rtol=1e-4)
    assert own.grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize("fusion", ["soft_model", "soft_query", "uniform", "sum"])
def test_length_zero_is_the_plain_encoder(fusion):
    method, x = taught(make(length=0, fusion=fusion), 2, 3), images(3)
    plain = method.backbone(x)
    torch.testing.assert_close(method.features(x), plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(method.scores(x), method.head(plain), atol=1e-6, rtol=1e-5)


# Mixing tasks


@pytest.mark.parametrize("training", [False, True])
def test_features_equal_the_formula_layer_by_layer(training):
    method, x = begun(taught(make(layers=(1, 2, 3, 5)), 2, 1)), images(3)
    method.train(training)
    weights = method.task_weights(x)
    got = method.features(x)
    for i in range(3):
        prompts = {layer: mixed(method, weights[i], layer) for layer in method.layers}
        torch.testing.assert_close(got[i], prefixed(method, x[i], prompts), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.scores(x), method.head(got))


def test_soft_model_weights_are_the_predictions_under_equal_weights():
    method, x = begun(taught(make(), 2, 1), size=3), images(5)
    got = method.task_weights(x)
    for i in range(5):
        prompts = {layer: mixed(method, [1 / 3] * 3, layer) for layer in range(DEPTH)}
        probability = method.head(prefixed(method, x[i], prompts)[None])[0].detach().double().exp()
        means = torch.stack([probability[:2].mean(), probability[2:3].mean(), probability[3:].mean()])
        torch.testing.assert_close(got[i].double(), means / means.sum(), atol=1e-5, rtol=1e-4)
    assert (got - 1 / 3).abs().max() > 0.05


def test_soft_query_weights_are_cosines_with_the_nearest_class_mean():
    method, x = taught(make(fusion="soft_query"), 2, 1, 3), images(5)
    query, rows, labels = method.backbone(x), [], []
    for t, classes in enumerate((range(2), range(2, 3), range(3, 6))):
        for xs, ys in task_of(t, classes).eval_batches():
            rows.append(method.backbone(xs))
            labels.append(ys)
    rows, labels = torch.cat(rows), torch.cat(labels)
    means = torch.stack([rows[labels == c].mean(0) for c in range(6)])
    cosines = F.normalize(query, dim=1) @ F.normalize(means, dim=1).T
    best = torch.stack([cosines[:, :2].amax(1), cosines[:, 2], cosines[:, 3:].amax(1)], 1)
    want = (best / 0.05).exp()
    torch.testing.assert_close(method.task_weights(x), want / want.sum(1, keepdim=True), atol=1e-5, rtol=1e-3)


def test_the_newest_means_are_there_while_the_task_trains():
    method = taught(make(fusion="soft_query"), 2)
    task = task_of(1, range(2, 4))
    method.begin_task(task)
    fit = next(iter(method.stages(task)))
    fit.prepare()
    assert method.means.counts.tolist() == [3, 3, 3, 3]
    assert method.train().task_weights(images(3)).shape == (3, 2)


@pytest.mark.parametrize("fusion", ["soft_model", "soft_query", "uniform"])
@pytest.mark.parametrize("training", [False, True])
def test_weights_sum_to_one_and_pass_no_gradient(fusion, training):
    method, x = taught(make(fusion=fusion), 2, 1), images(4)
    task = task_of(2, range(3, 5))
    method.begin_task(task)
    if (prepare := next(iter(method.stages(task))).prepare) is not None:
        prepare()
    nudge(method)
    method.train(training)
    weights = method.task_weights(x)
    assert weights.shape == (4, 3)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(1), torch.ones(4))
    assert not weights.requires_grad
    method.loss(x, torch.tensor([3, 4, 3, 4]))["ce"].backward()
    first = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    # The same weights as constants give the same gradients.
    method.zero_grad()
    plan = method._plan(weights.clone())
    method.head.loss(method.backbone(x, plan), torch.tensor([3, 4, 3, 4])).backward()
    for name, grad in first.items():
        torch.testing.assert_close(dict(method.named_parameters())[name].grad, grad, atol=1e-6, rtol=1e-4)
    assert {"root", "alpha", "generator.up", "generator.down", "head.weight.2"} <= set(first)
    assert not any(name.startswith("head.") and name[-1] != "2" for name in first)


def test_one_task_takes_one_pass_and_soft_model_two():
    method, x = taught(make(), 2), images(2)
    calls = []
    method.backbone.encoder.blocks[-1].register_forward_hook(lambda *a: calls.append(1))
    patches = []
    method.backbone.patch_embed.register_forward_hook(lambda *a: patches.append(1))
    method.scores(x)
    assert len(calls) == 1
    taught(method, 2)
    for fusion_in_training, training, want in ((True, False, 2), (True, True, 2), (False, True, 1), (False, False, 2)):
        calls.clear()
        patches.clear()
        method.fusion_in_training = fusion_in_training
        method.train(training).features(x)
        assert (len(calls), len(patches)) == (want, 1)


def test_training_without_fusion_weighs_tasks_equally():
    method, x = begun(taught(make(fusion_in_training=False), 2)), images(3)
    torch.testing.assert_close(method.train().task_weights(x), torch.full((3, 2), 0.5))
    assert (method.eval().task_weights(x) - 0.5).abs().max() > 0.01


def test_a_copy_under_equal_weights_moves_the_mixture_by_its_share():
    """(1 / t)(P_newest - mean), the drift that copies leave."""
    method = taught(make(fusion="uniform"), 2, 2)
    before = [mixed(method, [0.5, 0.5], layer) for layer in range(DEPTH)]
    newest = [mixed(method, [0.0, 1.0], layer) for layer in range(DEPTH)]
    method.begin_task(task_of(2, range(4, 6)))
    assert torch.equal(group_prompts(method)[2], group_prompts(method)[1])
    plan = method._plan(method.task_weights(images(1)))
    for layer in range(DEPTH):
        got = torch.stack(plan(layer, None).prefix, 1)[0].transpose(1, 2).reshape(2, P, D)
        want = before[layer] + (newest[layer] - before[layer]) / 3
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_the_sum_adds_prompts_once_each_and_one_encoding():
    method, x = begun(taught(make(fusion="sum"), 2, 3)), images(2)
    assert torch.equal(method.task_weights(x), torch.ones(2, 3))
    for i in range(2):
        prompts = {}
        for layer in range(DEPTH):
            total = group_prompts(method).detach()[:, layer // 2].sum(0)
            prompts[layer] = total + method.alpha.detach()[:, None, None] * encoding(layer)
        torch.testing.assert_close(method.features(x)[i], prefixed(method, x[i], prompts), atol=1e-5, rtol=1e-4)


def test_in_the_sum_a_new_prompt_starts_small_and_leaves_the_mixture_nearly_alone():
    method = taught(make(fusion="sum"), 2, 2)
    old, alpha = method.root.detach().clone(), method.alpha.detach().clone()
    method.begin_task(task_of(2, range(4, 6)))
    new = group_prompts(method)[2]
    assert new.abs().max() < 0.1 < group_prompts(method)[:2].abs().amax((1, 2, 3, 4)).min()
    assert not torch.equal(method.root, old)
    assert torch.equal(method.alpha, alpha), "the only encoding goes on"


# Weights by themselves


def test_weights_by_probability_average_over_the_classes_of_a_task():
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 1.0, -1.0]])
    got = weights_by_probability(logits, [3, 1])
    torch.testing.assert_close(got[0], torch.tensor([0.5, 0.5]))
    e = math.e
    one, other = (e**2 + 1 + e) / 3, e**-1
    torch.testing.assert_close(got[1], torch.tensor([one, other]) / (one + other))
    assert weights_by_probability(torch.tensor([[500.0, 0.0]]), [1, 1]).isfinite().all()


def test_weights_by_similarity_take_the_nearest_class_of_a_task():
    got = weights_by_similarity(torch.tensor([[0.1, 0.9, 0.8]]), [2, 1], 0.05)
    torch.testing.assert_close(got[0, 1] / got[0, 0], torch.tensor(math.exp(-0.1 / 0.05)))


# What trains and what stays


def test_a_warm_task_starts_where_the_last_one_ended_and_a_cold_one_anew():
    method = taught(make(), 2)
    names = ("root", "alpha", "generator.down", "generator.up")
    before = {n: method.get_parameter(n).detach().clone() for n in names}
    method.begin_task(task_of(1, range(2, 4)))
    for n in names:
        assert torch.equal(method.get_parameter(n), before[n]), n
    assert torch.equal(group_prompts(method)[1], method.prompts[0])
    cold = taught(make(warm_start=False), 2)
    cold.begin_task(task_of(1, range(2, 4)))
    assert cold.root.std() < 0.03
    assert torch.equal(cold.generator.up, torch.zeros_like(cold.generator.up))
    assert torch.equal(cold.alpha, torch.full((2,), 0.02))
    assert not torch.equal(cold.generator.down, before["generator.down"])


def test_the_size_of_a_new_root():
    for std in (0.02, 0.5):
        method = make(root_std=std, length=40)
        method.begin_task(task_of(0, range(2)))
        assert method.root.std().item() == pytest.approx(std, rel=0.1)
        assert torch.equal(method.alpha, torch.full((2,), 0.02))


def test_prompts_of_earlier_tasks_are_constants():
    method, x = begun(taught(make(), 2, 2)), images(2)
    kept, alphas = method.prompts.clone(), method.alphas.clone()
    assert kept.shape == (2, 3, 2, P, D)
    prompts = group_prompts(method)
    assert torch.equal(prompts[:2], kept)
    (prompts.sum() + method.features(x).sum()).backward()
    assert method.root.grad.abs().max() > 0
    assert not any(t.requires_grad for t in (method.prompts, method.alphas))
    with torch.no_grad():
        method.end_task(task_of(2, range(4, 6)))
    assert torch.equal(method.prompts[:2], kept)
    assert torch.equal(method.alphas[:2], alphas)
    assert torch.equal(group_prompts(method), method.prompts)
    assert torch.equal(method.prompts[2], prompts[2])


def test_scores_do_not_change_when_a_task_is_closed():
    method, x = begun(taught(make(), 2, 2)), images(3)
    before = method.scores(x).detach()
    with torch.no_grad():
        method.end_task(task_of(2, range(4, 6)))
    torch.testing.assert_close(method.scores(x), before, atol=1e-6, rtol=1e-5)


class Snapshots(Callback):
    """Keeps the state at the first step of every stage and after every step."""

    def __init__(self, method):
        self.method, self.started, self.stepped_to = method, {}, {}

    def on_stage_start(self, task, stage, step, steps):
        self.started[stage.name] = self.state()
        self.steps = steps

    def on_step(self, position, losses, optimizer, n):
        self.stepped_to[position.stage] = self.state()

    def state(self):
        return {k: v.clone() for k, v in self.method.learned_state().items()}


def engine_run(method, stream, upto, callback=None):
    for i in range(upto):
        learn_task(method, harness.learn_task_of(method, stream, i), SETTINGS, callback if i == upto - 1 else None)
    return method


def whole(**options):
    return harness.make("layer_grouped", **({"length": 3, "align": {"epochs": 2, "samples": 16}} | options))


@pytest.mark.parametrize("align", ["gaussians", "none"])
def test_training_moves_the_current_task_and_the_alignment_the_head_alone(align):
    stream = tiny_stream()
    method = whole() if align == "gaussians" else whole(align="none")
    callback = Snapshots(method)
    engine_run(method, stream, 2, callback)
    fit, after = callback.started["fit"], callback.stepped_to[0]
    moved = {k for k in fit if fit[k].shape != after[k].shape or not torch.equal(fit[k], after[k])}
    own = {"root", "alpha", "generator.down", "generator.up", "head.weight.1", "head.bias.1"}
    assert moved == own
    if align == "none":
        assert set(callback.started) == {"fit"}
        assert not method.alignment.state_dict()
        assert not method.head.weight[0].requires_grad
        return
    before, after = callback.started["align"], callback.stepped_to[1]
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved == {f"head.{part}.{t}" for part in ("weight", "bias") for t in (0, 1)}
    assert len(method.alignment.gaussians) == 4
    # 4 classes, 16 draws of each in batches of 16, two epochs
    assert callback.steps == 8


def test_the_first_task_needs_no_alignment_but_leaves_gaussians_for_later():
    method = make()
    task = task_of(0, range(2))
    method.begin_task(task)
    assert [stage.name for stage in method.stages(task)] == ["fit"]
    with torch.no_grad():
        method.end_task(task)
    assert len(method.alignment.gaussians) == 2
    task = task_of(1, range(2, 4))
    method.begin_task(task)
    assert [stage.name for stage in method.stages(task)] == ["fit", "align"]


def test_prompts_and_heads_of_old_tasks_survive_weight_decay():
    stream = tiny_stream()
    method = engine_run(whole(align="none"), stream, 1)
    before = {k: v.clone() for k, v in method.learned_state().items()}
    overrides = {"epochs": 2, "batch_size": 8, "optimizer": "sgd", "weight_decay": 0.1}
    settings = Settings(torch.device("cpu"), torch.float32, seed=3, overrides=overrides)
    learn_task(method, harness.learn_task_of(method, stream, 1), settings)
    for name in ("head.weight.0", "head.bias.0"):
        assert torch.equal(method.learned_state()[name], before[name])
    assert torch.equal(method.prompts[0], before["prompts"][0])
    aligned = engine_run(whole(), stream, 1)
    before = {k: v.clone() for k, v in aligned.learned_state().items()}
    callback = Snapshots(aligned)
    learn_task(aligned, harness.learn_task_of(aligned, stream, 1), settings, callback)
    for name in ("head.weight.0", "head.bias.0"):
        assert torch.equal(callback.stepped_to[0][name], before[name]), "the main stage"
        assert not torch.equal(callback.stepped_to[1][name], before[name]), "the alignment"


def test_the_loss_is_local_and_a_task_of_one_class_competes_with_old_rows():
    method, x = begun(taught(make(), 2)), images(3)
    y = torch.tensor([2, 3, 3])
    logits = method.head(method.features(x))
    torch.testing.assert_close(method.loss(x, y)["ce"], F.cross_entropy(logits[:, 2:], y - 2))
    single = begun(taught(make(), 2), size=1)
    y = torch.full((3,), 2)
    want = F.cross_entropy(single.head(single.features(x)), y)
    torch.testing.assert_close(single.loss(x, y)["ce"], want)
    assert want > 1e-3
    stage = next(iter(single.stages(task_of(1, range(2, 3)))))
    assert not {id(single.head.weight[0]), id(single.head.bias[0])} & {id(p) for p in stage.params}


@pytest.mark.parametrize(("fusion", "weights"), [("soft_model", [0, 0, 1]), ("uniform", [1 / 3] * 3), ("sum", None)])
def test_gaussians_are_of_features_under_fixed_weights(fusion, weights):
    method = begun(taught(make(fusion=fusion), 2, 1))
    task = task_of(2, range(3, 5))
    method.alignment.collect(task, method._newest_features)
    rows, labels = [], []
    for xs, ys in task.eval_batches():
        labels += ys.tolist()
        for x in xs:
            if weights is None:
                rows.append(method.features(x[None])[0])
            else:
                rows.append(prefixed(method, x, {layer: mixed(method, weights, layer) for layer in range(DEPTH)}))
    rows, labels = torch.stack(rows).detach(), torch.tensor(labels)
    assert len(method.alignment.gaussians) == 5
    for c in (3, 4):
        torch.testing.assert_close(method.alignment.gaussians.means[c], rows[labels == c].mean(0), atol=1e-5, rtol=1e-4)


def test_trainable_parameters_of_the_published_size():
    with torch.device("meta"):
        arch = Arch(dim=768, depth=12, heads=12, mlp_dim=3072)
        backbone = VisionBackbone(arch, patch=16, preprocess=Preprocess(224, (0.5,) * 3, (0.5,) * 3))

    def count(size=10, **options):
        with torch.device("meta"):
            method = LayerGrouped(backbone, **options)
        method.head.grow(size, device=torch.device("meta"))
        return sum(p.numel() for p in method.parameters() if p.requires_grad)

    head = 10 * 768 + 10
    assert count() == 89_088 + 2 + head
    assert count(position=False) == 89_088 + head
    assert count(groups=12, root=False, position=False) == 184_320 + head
    assert count(groups=3, root=False, position=False) == 3 * 15_360 + head


def test_state_grows_by_the_outputs_of_a_task():
    sizes = []
    method = make(align="none")
    for _ in range(3):
        taught(method, 2)
        state = method.learned_state()
        sizes.append(sum(v.numel() for k, v in state.items() if k != "task_sizes"))
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] == 3 * 2 * P * D + 2 + 2 * (D + 1)


# Whole runs, as in the contract suite, with options off their defaults


OPTIONS = [
    {"fusion": "soft_query"},
    {"fusion": "sum"},
    {"fusion": "uniform", "groups": 12, "root": False, "position": False},
    {"fusion_in_training": False, "layers": (2, 3, 7), "align": {"epochs": 2, "samples": 16, "covariance": "diagonal"}},
    {"align": "none", "warm_start": False},
    {"align": "discriminant", "fusion": "soft_query", "frozen_term": "discriminant"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()))
def test_runs_with_other_options(options):
    """Batch independence, and stops inside the main stage and inside the alignment that change nothing."""
    stream = tiny_stream()
    x = harness.inputs_of(stream)
    method = harness.learn(whole(**options), stream)
    together = harness.scores(method, x)
    assert together.shape == (len(x), 5)
    alone = torch.cat([harness.scores(method, x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    for steps in (4, 9):
        cut = harness.learn(whole(**options), stream, upto=1)
        callback = harness.StopAt(cut, steps)
        task = harness.learn_task_of(cut, stream, 1)
        if steps == 9 and options.get("align") in ("none", "discriminant"):
            continue  # there is no ninth step
        with pytest.raises(harness.Stop):
            learn_task(cut, task, harness.SETTINGS, callback)
        assert callback.position.stage == (steps > 6)
        fresh = whole(**options)
        fresh.load_learned_state(callback.state)
        learn_task(fresh, task, harness.SETTINGS, resume=(callback.position, callback.optimizer))
        learn_task(fresh, harness.learn_task_of(fresh, stream, 2), harness.SETTINGS)
        assert torch.equal(harness.scores(fresh, x), together)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, r"method\.groups must lie in \[1, 6\], the number of prompted layers, got 0"),
        ({"groups": 7}, r"method\.groups must lie in \[1, 6\]"),
        ({"groups": 3, "layers": (0, 1)}, r"method\.groups must lie in \[1, 2\]"),
        ({"layers": ()}, r"method\.layers must name at least one layer"),
        ({"layers": (1, 6, 2)}, r"method\.layers must name layers in \[0, 5\], each once, got \[1, 6, 2\]"),
        ({"layers": (1, 1, 2)}, r"method\.layers must name layers in \[0, 5\], each once"),
        ({"length": -1}, r"method\.length must not be negative, got -1"),
        ({"bottleneck": 0}, r"method\.bottleneck must be at least 1, got 0"),
        ({"root_std": 0.0}, r"method\.root_std must be positive, got 0\.0"),
        ({"align": {"lr": -1.0}}, r"method\.align\.lr: .*greater than 0, got -1\.0"),
        ({"align": {"epochs": 0}}, r"method\.align\.epochs: .*greater than or equal to 1"),
        ({"align": {"samples": 0}}, r"method\.align\.samples: .*greater than or equal to 1"),
        ({"fusion": "mean"}, r"method\.fusion must be one of \['soft_model', .*\], got 'mean'"),
        ({"align": {"covariance": "tied"}}, r"method\.align\.covariance: .*got 'tied'"),
        ({"align": {"name": "none", "lr": 0.1}}, r"method\.align\.lr has no effect with method\.align=none"),
    ],
)
def test_options(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
