"""Methods with a memory or a store: what is kept, and the formulas of each written out naively."""

from __future__ import annotations

import pytest
import torch
from tests.unit.test_methods_math import images
from torch.nn import functional as F

from ostinato.contract.tiny_models import random_backbone, random_text_backbone
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask
from ostinato.methods.idbr import IDBR
from ostinato.methods.mbpa import MBPA
from ostinato.methods.slm import SLM
from ostinato.nn import cosine
from ostinato.nn.clusters import centres, representatives
from ostinato.nn.exemplars import Exemplars
from ostinato.registry import check_options


def make(cls, backbone=None, **options):
    torch.manual_seed(3)
    backbone = backbone or random_text_backbone()
    return cls(backbone, **check_options(cls, options, backbone.arch.depth)).eval()


def texts(n: int, seed: int = 0, length: int = 8) -> torch.Tensor:
    """Token numbers between a first and a last token, some texts shorter than others."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randint(4, 44, (n, length), generator=rng)
    x[:, 0] = 1
    for row, end in zip(x, torch.randint(3, length, (n,), generator=rng).tolist(), strict=True):
        row[end], row[end + 1 :] = 2, 0
    return x


def task_of(index: int, classes: range, x: torch.Tensor, y: torch.Tensor) -> LearnTask:
    def batches(rows=None):
        for part in torch.arange(len(x))[rows if rows is not None else slice(None)].split(4):
            yield x[part], y[part]

    return LearnTask(index, classes, list(range(len(x))), batches)  # pyright: ignore[reportArgumentType]


def taught(method, n_tasks: int = 2, n: int = 6):
    """The method after tasks of two classes with ``n`` texts (or images) each, without a training step."""
    text = method.backbone.modality == "text"
    for i in range(n_tasks):
        x = texts(2 * n, seed=i) if text else images(2 * n, seed=i)
        y = torch.arange(2 * n) % 2 + 2 * i
        task = task_of(i, range(2 * i, 2 * i + 2), x, y)
        method.begin_task(task)
        for p in method.head.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3
        with torch.no_grad():
            method.end_task(task)
    return method


# Clusters


def test_centres_of_separate_clouds_are_their_means():
    rng = torch.Generator().manual_seed(0)
    clouds = [torch.randn(20, 2, generator=rng) * 0.1 + torch.tensor(m) for m in ([0.0, 0.0], [5.0, 0.0], [0.0, 5.0])]
    found = centres(torch.cat(clouds), 3)
    for cloud in clouds:
        assert torch.cdist(found, cloud.double().mean(0, keepdim=True)).min() < 1e-9


def test_centres_repeat_where_points_do():
    assert centres(torch.ones(5, 3), 2).tolist() == [[1, 1, 1]] * 2


def test_representatives_are_different_samples():
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    rows = representatives(points, 7)
    assert len(rows) == 7 == len(set(rows.tolist()))
    assert rows.tolist() == sorted(rows.tolist())
    assert representatives(points, 40).tolist() == list(range(30))
    assert len(representatives(torch.ones(4, 2), 3)) == 1, "three centres, one and the same point"


# Exemplars


def test_exemplars_of_texts_have_one_width_and_come_back_as_they_were():
    kept = Exemplars(random_text_backbone())
    short, long = texts(2, length=5), texts(3, seed=1, length=9)
    kept.add(long, torch.tensor([0, 1, 1]), 0)
    kept.add(short, torch.tensor([2, 3]), 1)
    assert kept.x.shape == (5, 9)
    width = int((short != 0).sum(1).max())
    assert torch.equal(kept.at(torch.tensor([3, 4])), short[:, :width])
    assert kept.tasks.tolist() == [0, 0, 0, 1, 1]


def test_exemplars_of_images_are_bytes():
    kept = Exemplars(random_backbone(depth=1))
    kept.add(images(3), torch.tensor([0, 0, 1]), 0)
    assert kept.x.dtype == torch.uint8
    assert torch.equal(kept.at(torch.tensor([2])), images(3)[2:])
    twin = Exemplars(random_backbone(depth=1))
    twin.load_state_dict(kept.state_dict())
    assert torch.equal(twin.x, kept.x)


# MBPA++


@pytest.mark.parametrize("backbone", [random_text_backbone, random_backbone])
def test_heads_adapted_together_equal_gradient_steps_one_by_one(backbone):
    method = taught(make(MBPA, backbone(depth=2), neighbours=5, steps=4, adapt_lr=0.1, adapt_l2=0.02))
    x = texts(3, seed=9) if method.backbone.modality == "text" else images(3, seed=9)
    weight, bias = (torch.cat(list(p)).detach() for p in (method.head.weight, method.head.bias))
    expected = []
    for row in range(len(x)):
        near = torch.cdist(method.reader(x[row : row + 1]), method.reader(method.kept.x)).topk(5, largest=False)
        features = method.backbone(method.kept.at(near.indices[0])).detach()
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        for _ in range(4):
            away = (w - weight).square().sum() + (b - bias).square().sum()
            loss = 0.02 * away + F.cross_entropy(F.linear(features, w, b), method.kept.y[near.indices[0]])
            grads = torch.autograd.grad(loss, [w, b])
            w, b = ((p - 0.1 * g).detach().requires_grad_() for p, g in zip((w, b), grads, strict=True))
        expected.append(F.linear(method.backbone(x[row : row + 1]), w, b))
    with torch.inference_mode():
        torch.testing.assert_close(method.scores(x), torch.cat(expected), atol=1e-5, rtol=1e-4)


def test_all_parameters_adapt_and_are_given_back():
    method = taught(make(MBPA, random_text_backbone(depth=1), neighbours=3, steps=1, adapt="all", adapt_lr=0.02))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    x = texts(2, seed=9)
    with torch.inference_mode():
        together = method.scores(x)
        near = method.nearest(x)
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    params = [*method.backbone.parameters(), *method.head.parameters()]
    start = [p.detach().clone() for p in params]
    for row in range(2):
        known, answers = method.kept.at(near[row].clone()), method.kept.y[near[row].clone()]
        grads = torch.autograd.grad(F.cross_entropy(method.head(method.backbone(known)), answers), params)
        for p, s, g in zip(params, start, grads, strict=True):
            p.data = s - 0.02 * g
        torch.testing.assert_close(
            together[row : row + 1], method.head(method.backbone(x[row : row + 1])), atol=1e-5, rtol=1e-4
        )
        for p, s in zip(params, start, strict=True):
            p.data = s.clone()


def test_the_memory_keeps_a_share_evenly_and_is_replayed_at_its_rate():
    method = taught(make(MBPA, memory=0.5, replay_rate=1.0))
    assert method.exemplars == 12
    assert method.kept.tasks.tolist() == [0] * 6 + [1] * 6
    x, y = texts(4, seed=5), torch.tensor([2, 3, 2, 3])
    torch.manual_seed(0)
    losses = method.loss(x, y)
    assert set(losses) == {"ce", "replay"}
    torch.manual_seed(0)
    torch.rand(())
    rows = method.kept.draw(4)
    expected = F.cross_entropy(method.head(method.backbone(method.kept.at(rows))), method.kept.y[rows])
    torch.testing.assert_close(losses["replay"], expected)
    method.replay_rate = 0.0
    assert set(method.loss(x, y)) == {"ce"}


@pytest.mark.parametrize("method", [MBPA, IDBR])
def test_steps_without_replay_name_the_same_terms(method):
    """Processes draw for themselves whether to replay, and sum their terms by position."""
    rate = {"replay_rate": 0.5} if method is MBPA else {"replay_every": 2}
    learned = taught(make(method, **rate))
    x, y = texts(4, seed=5), torch.tensor([2, 3, 2, 3])
    seen = []
    for seed in range(12):
        torch.manual_seed(seed)
        seen.append(learned.loss(x, y))
    assert len({tuple(losses) for losses in seen}) == 1
    replayed = {all(losses[name] == 0 for name in losses if "replay" in name or "old" in name) for losses in seen}
    assert replayed == {True, False}


def test_without_adaptation_mbpa_is_its_head():
    method = taught(make(MBPA, adapt="none"))
    x = texts(3, seed=9)
    torch.testing.assert_close(method.scores(x), method.head(method.backbone(x)))


@pytest.mark.parametrize("options", [{"memory": 0.0}, {"replay_rate": 1.5}, {"adapt_lr": 0.0}, {"neighbours": 0}])
def test_mbpa_checks_its_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        make(MBPA, **options)


# IDBR


def test_halves_are_swapped_between_the_ends():
    method = make(IDBR)
    x = torch.tensor([[1, 10, 11, 12, 13, 2], [1, 20, 21, 22, 2, 0], [1, 30, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]])
    swapped = [[1, 12, 13, 10, 11, 2], [1, 21, 22, 20, 2, 0], [1, 30, 2, 0, 0, 0], [1, 2, 0, 0, 0, 0]]
    assert method.swapped(x).tolist() == swapped


def test_terms_of_idbr():
    method = taught(make(IDBR, memory=0.25, replay_every=1, order=2.0, task=3.0, hold_g=0.5, hold_s=0.25))
    assert method.exemplars == 6  # 3 of 12 samples of each task
    x, y = texts(4, seed=5), torch.tensor([2, 3, 2, 3])
    torch.manual_seed(0)
    losses = method.loss(x, y)
    torch.manual_seed(0)
    torch.rand(())
    rows = method.kept.draw(4)
    for prefix, batch, labels, tasks in (
        ("", x, y, torch.tensor([1] * 4)),
        ("old_", method.kept.at(rows), method.kept.y[rows], method.kept.tasks[rows]),
    ):
        terms = {"ce": 0.0, "order": 0.0, "task": 0.0}
        for turned, inputs in enumerate((batch, method.swapped(batch))):
            f = method.backbone(inputs)
            g, s = torch.tanh(method.general(f)), torch.tanh(method.specific(f))
            terms["ce"] += F.cross_entropy(method.head(torch.cat([g, s], 1)), labels) / 2
            terms["order"] += 2 * F.cross_entropy(method.halves(g), torch.full((4,), turned)) / 2
            terms["task"] += 3 * F.cross_entropy(method.tasks(s), tasks) / 2
        for name, value in terms.items():
            torch.testing.assert_close(losses[prefix + name], value)
    torch.testing.assert_close(losses["hold_g"], torch.tensor(0.0), atol=1e-8, rtol=0)  # nothing has moved yet
    method.old_g, method.old_s = method.old_g + 0.1, method.old_s + 0.2
    torch.manual_seed(0)
    held = method.loss(x, y)
    torch.testing.assert_close(held["hold_g"], torch.tensor(0.5 * 128 * 0.01), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(held["hold_s"], torch.tensor(0.25 * 128 * 0.04), atol=1e-4, rtol=1e-4)


def test_idbr_keeps_every_class_a_sample_at_the_least():
    assert taught(make(IDBR, memory=0.001)).exemplars == 4


def test_idbr_checks_its_options():
    with pytest.raises(InputError, match=r"method\.memory must lie in \(0, 1\], got 2"):
        make(IDBR, memory=2.0)
    with pytest.raises(InputError, match="must not be negative"):
        make(IDBR, hold_g=-1.0)


# SLM


def trained(method: SLM) -> SLM:
    for bank in method.up.values():
        for p in bank:
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(len(p))) * 0.1
    return method


def begun(method: SLM, n_tasks: int = 2) -> SLM:
    for i in range(n_tasks):
        x = texts(12, seed=i)
        task = task_of(i, range(2 * i, 2 * i + 2), x, torch.arange(12) % 2 + 2 * i)
        method.begin_task(task)
        for stage in method.stages(task):
            assert stage.prepare is not None
            stage.prepare()
    return method


def test_slm_begins_at_the_plain_encoder():
    method = begun(make(SLM))
    x = texts(3, seed=9)
    torch.testing.assert_close(method.scores(x), method.head(method.backbone(x)), atol=1e-6, rtol=1e-5)


def test_keys_are_cluster_centres_of_the_task_alone():
    method = begun(make(SLM, keys=2))
    for i, keys in enumerate(method.keys):
        expected = centres(F.normalize(method.backbone(texts(12, seed=i)).double(), dim=-1), 2)
        torch.testing.assert_close(keys.detach(), expected.float(), atol=1e-5, rtol=1e-4)
        assert not any(p is keys for s in method.stages(task_of(1, range(2, 4), texts(2), torch.tensor([2, 3])))
                       for p in s.params or [])  # fmt: skip


def test_every_sample_is_computed_under_its_own_weights():
    """Folding the retrieved updates into the weights of a copy, for one sample at a time, gives the same scores."""
    method = trained(begun(make(SLM, keys=3, top_k=2, rank=2, temperature=0.1, scale=1.5)))
    x = texts(4, seed=9)
    got = method.scores(x)
    keys = torch.cat(list(method.keys))
    for row in range(len(x)):
        near = cosine(method.backbone(x[row : row + 1]), keys)[0]
        ids = near.argsort(descending=True)[:2]
        weights = (near[ids] / 0.1).softmax(0)
        twin = random_text_backbone()
        for place in method.down:
            layer, name = place.split("-")
            down, up = torch.cat(list(method.down[place])), torch.cat(list(method.up[place]))
            update = sum(w * up[i] @ down[i] for w, i in zip(weights, ids, strict=True)) * 1.5
            linear = twin.encoder.blocks[int(layer)].attn.qkv
            start = {"q": 0, "v": 2}[name] * 16
            linear.weight.data[start : start + 16] += update.detach()
        torch.testing.assert_close(got[row], method.head(twin(x[row : row + 1]))[0], atol=1e-5, rtol=1e-4)


def test_training_retrieves_within_the_task_and_all_tasks_compete_at_test():
    method = trained(begun(make(SLM, keys=2, top_k=4)))
    query = method.query(texts(5, seed=9))
    ids, weights = method.retrieve(query, method.keys[-1])
    assert ids.shape == (5, 2), "no more than the task has"
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    ids, _ = method.retrieve(query, method.keys.joined())
    assert ids.sort(1).values.tolist() == [[0, 1, 2, 3]] * 5


def test_slm_at_a_small_temperature_takes_the_nearest():
    method = trained(begun(make(SLM, keys=2, top_k=4, temperature=1e-3)))
    query = method.keys.joined()[:1].detach()
    _, weights = method.retrieve(query, method.keys.joined())
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0.0, 0.0, 0.0]]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("options", [{"layers": ()}, {"temperature": 0.0}, {"keys": 0}])
def test_slm_checks_its_options(options):
    with pytest.raises(InputError, match=next(iter(options))):
        make(SLM, **options)
