"""The formulas of each method, written out naively, against what it computes."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ostinato.backbones import Edit, LayerPlan, Tokens
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, TaskInferring
from ostinato.methods.coda_prompt import CODAPrompt
from ostinato.methods.dualprompt import DualPrompt
from ostinato.methods.finetune import Finetune
from ostinato.methods.l2p import L2P
from ostinato.methods.simplecil import SimpleCIL

D, H, DEPTH, MLP = 16, 2, 3, 32
CPU = torch.device("cpu")


def images(n, seed=0):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(cls, **options):
    torch.manual_seed(3)
    return cls(random_backbone(depth=DEPTH), **options).eval()


def learn_task(index, classes, x=None, y=None):
    def batches():
        for part in torch.arange(len(x)).split(4):
            yield x[part], y[part]

    return LearnTask(index, classes, None, batches)


def begin(method, *sizes, end=True):
    first = method.n_seen
    for i, n in enumerate(sizes, start=method.n_tasks):
        method.begin_task(learn_task(i, range(first, first + n)))
        first += n
    return method


def cos(a, b):
    a, b = a.detach(), b.detach()
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def trainable(method):
    return sum(p.numel() for p in method.parameters() if p.requires_grad)


def nudge(method, seed=7):
    """Training, as far as these tests care: everything trainable moves."""
    with torch.no_grad():
        for i, p in enumerate(p for p in method.parameters() if p.requires_grad):
            p += 0.1 * draw(*p.shape, seed=seed + i)


# Method


def test_the_heads_loss_is_local_except_for_a_task_of_one_class():
    method = begin(make(L2P), 3, 2)
    nudge(method)
    features, labels = draw(4, D, seed=3), torch.tensor([3, 4, 4, 3])
    full = method.head(features)
    want = torch.nn.functional.cross_entropy(full[:, 3:], labels - 3)
    torch.testing.assert_close(method.head.loss(features, labels), want)
    begin(method, 1)
    nudge(method)
    labels = torch.full((4,), 5)
    loss = method.head.loss(features, labels)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(method.head(features), labels))
    loss.backward()
    assert method.head.weight[-1].grad.abs().max() > 0
    assert method.head.weight[0].grad is None


def test_queries_are_plain_features_without_gradients_looked_up_only_at_test():
    method, x = make(L2P), images(3)
    want = method.backbone(x)
    calls = []
    method.backbone.register_forward_hook(lambda *a: calls.append(1))
    for _ in range(2):
        torch.testing.assert_close(method.query(x), want)
    assert len(calls) == 1
    method.train()
    for _ in range(2):
        torch.testing.assert_close(method.query(x), want)
    assert len(calls) == 3, "augmented images do not come again"
    assert not method.query(x).requires_grad


def test_a_trained_backbone_is_never_looked_up():
    method, x = make(Finetune), images(2)
    before = method.query(x)
    assert not before.requires_grad
    with torch.no_grad():
        method.backbone.pos_embed.add_(draw(*method.backbone.pos_embed.shape))
    assert not torch.allclose(method.query(x), before)


def test_learned_state_holds_the_backbone_only_where_it_is_trained():
    assert not any(k.startswith("backbone.") for k in make(L2P).learned_state())
    assert any(k.startswith("backbone.") for k in make(Finetune).learned_state())
    assert not any(k.startswith("backbone.") for k in make(Finetune, scope="head").learned_state())


def test_a_state_of_another_method_is_refused():
    state = begin(make(L2P), 2).learned_state()
    with pytest.raises(InputError, match=r"does not fit l2p: missing \['pool.keys'\], unknown \['other'\]"):
        make(L2P).load_learned_state({("other" if k == "pool.keys" else k): v for k, v in state.items()})


# L2P


def test_l2p_selects_the_top_k_by_cosine_per_sample():
    method, x = make(L2P, pool_size=7, top_k=3, length=2), images(6)
    query = method.query(x)
    with torch.no_grad():  # random features are much alike: keys that tell them apart
        method.pool.keys[:6] = query - query.mean(0)
    ids, similarity = method.pool.select(method.query(x))
    assert ids.shape == similarity.shape == (6, 3)
    chosen = set()
    for i in range(6):
        own = [cos(query[i], key) for key in method.pool.keys]
        best = sorted(range(7), key=lambda m: -own[m])[:3]
        assert ids[i].tolist() == best
        assert similarity[i].tolist() == pytest.approx([own[m] for m in best], abs=1e-5)
        chosen.add(tuple(best))
    assert len(chosen) > 1, "samples choose differently, or the test shows nothing"


@pytest.mark.parametrize("backbone_reads", ["cls", "mean"])
@pytest.mark.parametrize("readout", ["prompt", "cls"])
def test_l2p_puts_prompts_after_cls_with_its_position(readout, backbone_reads):
    method, x = make(L2P, pool_size=5, top_k=2, length=3, readout=readout), images(2)
    method.backbone.readout = backbone_reads
    ids = torch.tensor([[4, 1], [0, 3]])
    backbone = method.backbone
    plain = backbone.embed(x).h
    for i in range(2):
        prompts = torch.cat([method.pool.prompts[m] for m in ids[i]]) + backbone.pos_embed[0, 0]
        sequence = torch.cat([plain[i, :1], prompts, plain[i, 1:]])
        assert sequence.shape == (1 + 6 + 4, D)
        out = backbone.encoder.norm(backbone.run(Tokens(sequence[None])).h[0])
        want = out[1:7].mean(0) if readout == "prompt" else out[0]
        torch.testing.assert_close(method.features(x, ids)[i], want, atol=1e-5, rtol=1e-4)


def test_l2p_loss_terms():
    method, x = begin(make(L2P, pool_size=5, top_k=2, pull=0.3), 3, 2), images(4)
    y = torch.tensor([3, 4, 4, 3])
    losses = method.loss(x, y)
    ids, similarity = method.pool.select(method.query(x))
    rows, bias = method.head.weight[1], method.head.bias[1]
    logits = method.features(x, ids) @ rows.T + bias
    want = -sum(F.log_softmax(logits[i], 0)[y[i] - 3] for i in range(4)) / 4
    assert set(losses) == {"ce", "pool"}
    torch.testing.assert_close(losses["ce"], want)
    assert losses["pool"].item() == pytest.approx(-0.3 * similarity.sum().item() / 4, rel=1e-5)


def test_l2p_trains_chosen_prompts_and_keys_only_and_pulls_them_closer():
    method, x = begin(make(L2P, pool_size=8, top_k=2), 2), images(3)
    ids, before = method.pool.select(method.query(x))
    chosen = torch.zeros(8, dtype=torch.bool)
    chosen[ids.flatten()] = True
    assert not chosen.all()
    losses = method.loss(x, torch.tensor([0, 1, 0]))
    (losses["ce"] + losses["pool"]).backward()
    assert torch.equal(method.pool.keys.grad.abs().amax(1) > 0, chosen)
    assert torch.equal(method.pool.prompts.grad.abs().amax((1, 2)) > 0, chosen)
    with torch.no_grad():
        method.pool.keys -= 0.1 * method.pool.keys.grad
    assert method.pool.select(method.query(x))[1].sum() > before.sum()


def test_l2p_scores_are_the_head_on_the_selected_prompts():
    method, x = begin(make(L2P), 2, 3), images(4)
    want = method.head(method.features(x, method.pool.select(method.query(x))[0]))
    assert want.shape == (4, 5)
    torch.testing.assert_close(method.scores(x), want)


@pytest.mark.parametrize("options", [{"top_k": 0}, {"top_k": 11}, {"readout": "mean"}])
def test_l2p_options(options):
    with pytest.raises(InputError, match=r"method\."):
        make(L2P, **options)


# DualPrompt


def dual(**options):
    return make(DualPrompt, **({"g_layers": (0,), "e_layers": (1, 2), "g_length": 3, "e_length": 4} | options))


def test_dualprompt_plan_layers_and_prefixes():
    method = begin(dual(), 2, 2)
    nudge(method)
    edits = method.prompts.under_each(torch.tensor([1, 0, 1]))
    assert sorted(edits) == [0, 1, 2]
    for role in (0, 1):
        general = edits[0].prefix[role]
        assert general.shape == (3, H, 3, D // H)
        for head in range(H):
            part = slice(head * D // H, (head + 1) * D // H)
            for sample in range(3):
                assert torch.equal(general[sample, head], method.prompts.g_prompt[0, role, :, part])
            for i, layer in enumerate((1, 2)):
                expert = edits[layer].prefix[role]
                assert expert.shape == (3, H, 4, D // H)
                for sample, task in enumerate((1, 0, 1)):
                    assert torch.equal(expert[sample, head], method.prompts.e_prompt[task][i, role, :, part])


def test_dualprompt_without_general_prompts():
    method = begin(dual(g_layers=()), 2)
    assert sorted(method.prompts.under(-1)) == [1, 2]
    assert method.scores(images(2)).shape == (2, 2)


def test_dualprompt_new_experts_are_copies_with_a_life_of_their_own():
    method = begin(dual(), 2)
    nudge(method)
    old = method.prompts.e_prompt[0].detach().clone()
    begin(method, 2)
    assert torch.equal(method.prompts.e_prompt[1], old)
    assert not torch.equal(method.keys.keys[1], method.keys.keys[0])
    nudge(method)
    assert torch.equal(method.prompts.e_prompt[0], old)
    assert not torch.equal(method.prompts.e_prompt[1], old)
    cold = begin(dual(warm_start=False), 2, 2)
    assert not torch.equal(cold.prompts.e_prompt[1], cold.prompts.e_prompt[0])
    assert cold.prompts.e_prompt[1].abs().max() <= 1


def test_dualprompt_infers_the_task_of_the_nearest_key():
    method, x = begin(dual(), 2, 1, 2), images(12)
    query = method.query(x)
    want = [max(range(3), key=lambda t: cos(query[i], method.keys.keys[t])) for i in range(12)]
    assert method.infer_task(x).tolist() == want
    with torch.no_grad():
        method.keys.keys[2].copy_(5 * query[4])
    assert method.infer_task(x)[4] == 2
    assert isinstance(method, TaskInferring)
    assert torch.equal(method.scores(x), method.scores_given_task(x, method.infer_task(x)))


def test_dualprompt_scores_each_sample_under_its_own_expert():
    method, x = begin(dual(warm_start=False), 2, 2), images(4)
    tasks = torch.tensor([1, 0, 0, 1])
    got = method.scores_given_task(x, tasks)
    for i, t in enumerate(tasks.tolist()):
        alone = method.head(method.features(x[i : i + 1], method.prompts.under(t)))
        torch.testing.assert_close(got[i : i + 1], alone, atol=1e-5, rtol=1e-4)
    assert (got - method.scores_given_task(x, 1 - tasks)).abs().amax(1).min() > 1e-4


def test_dualprompt_trains_the_current_expert_and_the_general_prompt():
    method, x = begin(dual(keys={"pull": 0.5}), 2, 2), images(4)
    y = torch.tensor([2, 3, 3, 2])
    losses = method.loss(x, y)
    query = method.query(x)
    want = sum(cos(query[i], method.keys.keys[1].detach()) for i in range(4)) / 4
    assert losses["pull"].item() == pytest.approx(-0.5 * want, rel=1e-5)
    features = method.features(x, method.prompts.under(1))
    logits = features @ method.head.weight[1].T + method.head.bias[1]
    torch.testing.assert_close(losses["ce"], F.cross_entropy(logits, y - 2))
    (losses["ce"] + losses["pull"]).backward()
    for bank in (method.prompts.e_prompt, method.keys.keys, method.head.weight):
        assert bank[0].grad is None
        assert bank[1].grad.abs().max() > 0
    assert method.prompts.g_prompt.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"g_layers": (3,)}, r"must name layers in \[0, 2\], each once, got \[3\]"),
        ({"e_layers": (-1, 1)}, r"must name layers in \[0, 2\], each once, got \[-1, 1\]"),
        ({"g_layers": (1,)}, r"both have \[1\]"),
        ({"g_layers": (0, 0)}, "each once"),
        ({"e_length": 0}, r"method\.e_length: .*greater than or equal to 1, got 0"),
        ({"e_layers": ()}, "at least one layer"),
    ],
)
def test_dualprompt_options(options, message):
    with pytest.raises(InputError, match=message):
        dual(**options)


# CODA-Prompt


def coda(**options):
    return make(CODAPrompt, **({"layers": (0, 2), "components": 3, "length": 4} | options))


def test_coda_prefixes_equal_the_literal_formula():
    method = begin(coda(), 2, 2)
    nudge(method)
    query = draw(4, D, seed=1)
    got = method.prefixes(query)
    assert got.shape == (4, 2, 2, 2, D)
    keys, attention, prompts = (bank.joined().detach() for bank in (method.keys, method.attention, method.prompts))
    assert len(keys) == 6
    for b in range(4):
        for layer in range(2):
            total = torch.zeros(4 * D)
            for m in range(6):
                total += cos(query[b] * attention[m, layer], keys[m, layer]) * prompts[m, layer]
            rows = total.view(4, D)  # the first half are keys, the second half values
            torch.testing.assert_close(got[b, layer, 0], rows[:2], atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(got[b, layer, 1], rows[2:], atol=1e-5, rtol=1e-4)


def test_coda_heads_start_small_or_as_a_linear_layer():
    """The official code leaves its head at PyTorch's default: weights and biases of U(-1/sqrt(D), 1/sqrt(D))."""
    small, linear = (begin(coda(head_init=start), 40, 40).head for start in ("small", "linear"))
    assert float(small.weight[1].detach().std()) == pytest.approx(0.02, rel=0.2)
    assert not small.bias[1].any()
    for values in (t.detach() for t in (linear.weight[0], linear.weight[1], linear.bias[1])):
        assert float(values.abs().max()) <= D**-0.5
        assert float(values.std()) == pytest.approx((3 * D) ** -0.5, rel=0.3)


def test_coda_weights_do_not_depend_on_the_length_of_query_or_key():
    method, query = begin(coda(), 2), draw(3, D)
    want = method.prefixes(query)
    torch.testing.assert_close(method.prefixes(7 * query), want, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        method.keys[0] *= 3
        method.attention[0] *= 0.2
    torch.testing.assert_close(method.prefixes(query), want, atol=1e-5, rtol=1e-4)


def test_coda_features_use_the_prefixes_of_their_layers():
    method, x = begin(coda(), 2), images(3)
    nudge(method)
    prefixes = method.prefixes(method.query(x))
    for i in range(3):
        edits = {}
        for place, layer in enumerate((0, 2)):
            keys, values = (p.view(2, H, D // H).transpose(0, 1)[None] for p in prefixes[i, place])
            edits[layer] = Edit(prefix=(keys, values))
        want = method.backbone(x[i : i + 1], LayerPlan(edits))
        torch.testing.assert_close(method.features(x)[i : i + 1], want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(method.scores(x), method.head(method.features(x)))


def test_coda_new_components_are_orthonormal_and_orthogonal_to_trained_ones():
    method = begin(coda(), 2)
    for _ in range(2):
        nudge(method)  # training leaves neither unit norm nor orthogonality
        old = {name: getattr(method, name).joined().detach().double() for name in ("keys", "attention", "prompts")}
        begin(method, 1)
        for name, before in old.items():
            new = getattr(method, name)[-1].detach().double()
            for layer in range(2):
                a, b = before[:, layer], new[:, layer]
                assert (b @ b.T - torch.eye(3)).abs().max() < 1e-5, name
                assert (F.normalize(a, dim=-1) @ b.T).abs().max() < 1e-5, name


def test_coda_layers_and_banks_start_differently():
    method = begin(coda(), 2)
    assert not torch.allclose(method.keys[0], method.attention[0])
    assert not torch.allclose(method.keys[0][:, 0], method.keys[0][:, 1])


def test_coda_takes_more_components_than_dimensions():
    method = begin(coda(components=10), 2)
    for task in (1, 2):
        nudge(method)
        begin(method, 1)
        for bank in (method.keys, method.attention, method.prompts):
            torch.testing.assert_close(bank[-1].norm(dim=-1), torch.ones(10, 2))
        if task == 1:  # 16 dimensions, 10 taken: 6 are left, and used
            new, old = method.keys[1].detach()[:, 0], method.keys[0].detach()[:, 0]
            assert (new[:6] @ old.T).abs().max() < 1e-4
            assert (new[:6] @ new[:6].T - torch.eye(6)).abs().max() < 1e-4
    assert method.keys.joined().shape == (30, 2, D)
    assert method.scores(images(2)).isfinite().all()
    assert (method.keys[2][0] - method.keys[2][1]).abs().max() > 1e-2


def test_coda_penalty():
    method = begin(coda(ortho=0.5), 2)
    assert method.penalty().item() == pytest.approx(0, abs=1e-9)
    begin(method, 2)
    nudge(method)
    want = 0.0
    for bank in (method.keys, method.attention, method.prompts):
        vectors = bank.joined().detach().double().numpy()
        for layer in range(2):
            v = vectors[:, layer]
            want += ((v @ v.T - np.eye(6)) ** 2).mean()
    assert method.penalty().item() == pytest.approx(want, rel=1e-4)
    losses = method.loss(images(2), torch.tensor([2, 3]))
    assert losses["ortho"].item() == pytest.approx(0.5 * want, rel=1e-4)
    assert set(begin(coda(), 2).loss(images(2), torch.tensor([0, 1]))) == {"ce"}


def test_coda_trains_new_components_and_the_local_classes():
    method, x = begin(coda(), 2, 3), images(3)
    y = torch.tensor([2, 4, 3])
    loss = method.loss(x, y)["ce"]
    logits = method.features(x) @ method.head.weight[1].T + method.head.bias[1]
    torch.testing.assert_close(loss, F.cross_entropy(logits, y - 2))
    loss.backward()
    for bank in (method.keys, method.attention, method.prompts, method.head.weight):
        assert bank[0].grad is None
        assert bank[1].grad.abs().max() > 0


@pytest.mark.parametrize("options", [{"layers": ()}, {"layers": (3,)}, {"length": 3}, {"length": 0}])
def test_coda_options(options):
    with pytest.raises(InputError, match=r"method\.(layers|length)"):
        coda(**options)


# SimpleCIL


def taught(order, tasks, x, y):
    """SimpleCIL after tasks of the given sizes, whose classes are ``order``."""
    method = make(SimpleCIL)
    label = {c: i for i, c in enumerate(order)}
    first = 0
    for i, n in enumerate(tasks):
        mine = [k for k in range(len(y)) if int(y[k]) in order[first : first + n]]
        task = learn_task(i, range(first, first + n), x[mine], torch.tensor([label[int(y[k])] for k in mine]))
        method.begin_task(task)
        assert list(method.stages(task)) == []
        with torch.no_grad():
            method.end_task(task)
        first += n
    return method


def test_simplecil_equals_nearest_class_means():
    x, y = images(25), torch.arange(25) % 5
    method = taught([0, 1, 2, 3, 4], [2, 2, 1], x, y)
    test = images(9, seed=1)
    with torch.no_grad():
        features, queries = method.backbone(x).double().numpy(), method.backbone(test).double().numpy()
    means = np.stack([features[y.numpy() == c].mean(0) for c in range(5)])
    want = queries @ means.T / np.linalg.norm(queries, axis=1)[:, None] / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(method.scores(test).numpy(), want, atol=1e-5)


def test_simplecil_does_not_depend_on_the_order_of_classes_or_tasks():
    x, y, test = images(25), torch.arange(25) % 5, images(9, seed=1)
    want = taught([0, 1, 2, 3, 4], [2, 2, 1], x, y).scores(test)
    for order, tasks in (([0, 1, 2, 3, 4], [5]), ([3, 0, 4, 1, 2], [1, 3, 1])):
        got = taught(order, tasks, x, y).scores(test)
        torch.testing.assert_close(got, want[:, order], atol=1e-6, rtol=1e-6)
    shuffle = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    got = taught([0, 1, 2, 3, 4], [2, 2, 1], x[shuffle], y[shuffle]).scores(test)
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)


# Sizes


BACKBONE = (
    (3 * 4 * 4 * D + D)  # patches
    + D  # CLS
    + 5 * D  # positions
    + DEPTH * (4 * D + (3 * D * D + 3 * D) + (D * D + D) + (D * MLP + MLP) + (MLP * D + D))
    + 2 * D  # final norm
)


def head(n):
    return n * (D + 1)


@pytest.mark.parametrize(
    ("cls", "options", "first", "second"),
    [
        (SimpleCIL, {}, 0, 0),
        (Finetune, {}, BACKBONE + head(3), BACKBONE + head(3) + head(2)),
        (Finetune, {"scope": "head"}, head(3), head(3) + head(2)),
        (L2P, {}, 10 * 5 * D + 10 * D + head(3), 10 * 5 * D + 10 * D + head(2)),
        (
            DualPrompt,
            {"g_layers": (0,), "e_layers": (1, 2), "g_length": 3},
            2 * 3 * D + 2 * 2 * 5 * D + D + head(3),
            2 * 3 * D + 2 * 2 * 5 * D + D + head(2),
        ),
        (
            CODAPrompt,
            {"layers": (0, 2), "components": 7, "length": 6},
            7 * 2 * (6 * D + D + D) + head(3),
            7 * 2 * (6 * D + D + D) + head(2),
        ),
    ],
)
def test_trainable_parameters_of_two_tasks(cls, options, first, second):
    method = begin(make(cls, **options), 3)
    assert trainable(method) == first
    assert trainable(begin(method, 2)) == second


def test_learned_state_grows_by_the_parts_of_a_task():
    sizes = []
    method = dual()
    for _ in range(3):
        begin(method, 2)
        sizes.append(sum(v.numel() for k, v in method.learned_state().items() if k != "task_sizes"))
    step = 2 * 2 * 4 * D + D + head(2)
    assert [b - a for a, b in pairwise(sizes)] == [step, step]
