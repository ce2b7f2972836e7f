"""The memory of exemplars, and the methods that train the encoder with it or with a penalty, by hand-worked cases."""

from __future__ import annotations

import math

import pytest
import torch
from tests.unit.test_methods_math import images
from tests.unit.test_replay import make, task_of
from torch.nn import functional as F

from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError
from ostinato.methods.bic import BiC
from ostinato.methods.der import DER
from ostinato.methods.er import ER
from ostinato.methods.ewc import EWC
from ostinato.methods.gdumb import GDumb
from ostinato.methods.icarl import ICaRL
from ostinato.methods.lwf import LwF
from ostinato.methods.parts.memory import HerdingOptions, Memory, RandomOptions, ReservoirOptions
from ostinato.methods.slca import SLCA, Normalised
from ostinato.nn import TaskHeads, cosine
from ostinato.nn.distillation import OldModel, distillation
from ostinato.nn.exemplars import first_of_each_class, herding


def images_task(index: int, n: int = 12):
    """A task of two classes with ``n`` images."""
    return task_of(index, range(2 * index, 2 * index + 2), images(n, seed=index), torch.arange(n) % 2 + 2 * index)


def begun(cls, n_tasks: int = 2, **options):
    """The method after ``n_tasks`` tasks, with random rows of the head and no training step, in a further task."""
    method = make(cls, random_backbone(depth=1), **options)
    for i in range(n_tasks + 1):
        method.begin_task(images_task(i))
        for k, p in enumerate(method.head.parameters()):
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.3
        if i < n_tasks:
            with torch.no_grad():
                method.end_task(images_task(i))
    return method


def moved(method):
    """The method after a change of all weights of the encoder."""
    for k, p in enumerate(method.backbone.parameters()):
        p.data += torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.05
    return method


# Memory


def test_herding_follows_the_mean():
    """Of angles of 0, 40, 90 and 100 degrees, 40 is the nearest to the mean."""
    angles = [0.0, 40.0, 90.0, 100.0]
    points = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles])
    goal, chosen = points.mean(0), []
    for k in range(1, 5):
        left = [i for i in range(4) if i not in chosen]
        far = {i: float((goal - (points[chosen].sum(0) + points[i]) / k).norm()) for i in left}
        chosen.append(min(far, key=far.__getitem__))
    lengths = torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None]  # which do not matter
    assert chosen[0] == 1
    assert herding(points * lengths, 9).tolist() == chosen
    assert herding(points * lengths, 2).tolist() == chosen[:2]


def test_a_smaller_share_keeps_the_first_of_each_class():
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 2])
    assert first_of_each_class(labels, 2).tolist() == [0, 1, 2, 4, 6]
    assert first_of_each_class(labels[:0], 2).tolist() == []


@pytest.mark.parametrize("per", ["all", "class"])
def test_a_budget_is_shared_or_of_each_class(per):
    memory = Memory(random_backbone(depth=1), RandomOptions(size=8 if per == "all" else 6, per=per))
    counted = []
    for i in range(3):
        before = memory.x.clone()
        stay = memory.update(images_task(i, 20), lambda x: x.flatten(1).float())
        assert memory.x[: len(stay)].tolist() == before[stay].tolist()
        counted.append(torch.bincount(memory.y).tolist())
    expected = [8 // (2 * (i + 1)) if per == "all" else 6 for i in range(3)]
    assert counted == [[n] * 2 * (i + 1) for i, n in enumerate(expected)]


def test_herding_in_a_memory_is_by_class_and_leaves_out_what_it_must():
    memory = Memory(random_backbone(depth=1), HerdingOptions(size=4))
    task = images_task(0)
    features = task.extract_features(lambda x: x.flatten(1).float())[0]
    without = torch.arange(0, 12, 4)
    memory.update(task, lambda x: x.flatten(1).float(), without=without)
    free = [torch.tensor([r for r in range(c, 12, 2) if r not in without.tolist()]) for c in range(2)]
    rows = torch.cat([group[herding(features[group], 2)] for group in free])
    assert torch.equal(memory.x, images(12, seed=0)[rows])
    assert memory.y.tolist() == [0, 0, 1, 1]


def test_every_sample_is_as_likely_in_a_reservoir():
    """Of 12 + 12 samples, 6 are kept: each with probability 1/4, with a standard error of 1.5 % in 800 draws."""
    kept, backbone = torch.zeros(24), random_backbone(depth=1)
    tasks = [task_of(i, range(i, i + 1), torch.arange(12)[:, None] + 12 * i, torch.full((12,), i)) for i in range(2)]
    for seed in range(800):
        torch.manual_seed(seed)
        memory = Memory(backbone, ReservoirOptions(size=6))
        for task in tasks:
            memory.update(task, lambda x: x)
        assert len(memory) == 6 == len(set(memory.x[:, 0].tolist()))
        kept[memory.x[:, 0].long()] += 1
    assert (kept / 800 - 0.25).abs().max() < 0.06


def test_a_budget_below_one_per_class_is_refused_before_the_task():
    with pytest.raises(InputError, match=r"method\.memory\.size must be at least the number of classes seen, 6 now"):
        begun(ICaRL, memory={"size": 5})


# Replay


def test_er_takes_the_mean_over_both_batches():
    method = begun(ER, memory={"size": 7})
    assert method.exemplars == 7
    assert method.exemplar_bytes == 7 * images(1).numel(), "a byte per value of a pixel"
    x, y = images(4, seed=9), torch.tensor([4, 5, 4, 5])
    torch.manual_seed(0)
    losses = method.loss(x, y)
    torch.manual_seed(0)
    old, labels = method.memory.batch(4)
    logits = method.head(method.backbone(torch.cat([x, old])))
    torch.testing.assert_close(sum(losses.values()), F.cross_entropy(logits, torch.cat([y, labels])))
    assert set(begun(ER, 0).loss(x, y % 2)) == {"ce"}


def test_der_keeps_logits_and_compares_those_it_had():
    method = begun(DER, 1, memory={"size": 8}, alpha=0.5, beta=0.25)
    first = method.kept_logits.clone()
    with torch.no_grad():
        method.end_task(images_task(1))
    new = method.memory.tasks == 1
    assert 0 < new.sum() < 8
    torch.testing.assert_close(method.kept_logits[new], method.scores(method.memory.x[new]).detach())
    assert (method.kept_logits[~new][:, 2:] == 0).all()
    assert all((first == row[:2]).all(1).any() for row in method.kept_logits[~new])
    method.begin_task(images_task(2))
    moved(method)
    now = method.scores(method.memory.x).detach()
    squares = [float((now[i, j] - method.kept_logits[i, j]) ** 2) for i in range(8) for j in range(4 if new[i] else 2)]
    torch.testing.assert_close(method.distance(torch.arange(8)), torch.tensor(sum(squares) / len(squares)))
    x, y = images(4, seed=9), torch.tensor([4, 5, 4, 5])
    torch.manual_seed(0)
    losses = method.loss(x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(losses["logits"], 0.5 * method.distance(method.memory.draw(4)))
    kept, labels = method.memory.batch(4)
    torch.testing.assert_close(losses["replay"], 0.25 * F.cross_entropy(method.scores(kept), labels))
    assert set(begun(DER, 1).loss(x, y - 2)) == {"ce", "logits"}


def test_icarl_distils_old_classes_and_learns_new_ones():
    method = begun(ICaRL, memory={"size": 12})
    x, y = images(4, seed=9), torch.tensor([4, 5, 4, 5])
    moved(method)
    method.memory.keep(torch.arange(0))  # the batch alone
    losses = method.joined_loss(x, y, 12)
    q = method.head(method.backbone(x)).sigmoid()
    target = torch.cat([method.old.logits(method.backbone, x).sigmoid(), F.one_hot(y - 4, 2)], dim=1)
    bce = -(target * q.log() + (1 - target) * (1 - q).log())
    torch.testing.assert_close(losses["kd"], bce[:, :4].sum(1).mean())
    torch.testing.assert_close(losses["ce"], bce[:, 4:].sum(1).mean())
    assert not torch.allclose(target[:, :4], q[:, :4])


def test_icarl_joins_exemplars_in_proportion_and_predicts_the_nearest_mean():
    method = begun(ICaRL, memory={"size": 12})
    assert torch.bincount(method.memory.y).tolist() == [3] * 4
    assert method.memory.count_beside(8, 24) == 4
    features = F.normalize(method.backbone(method.memory.x), dim=-1)
    means = torch.stack([features[method.memory.y == c].mean(0) for c in range(4)])
    x = images(5, seed=9)
    torch.testing.assert_close(method.scores(x), cosine(method.backbone(x), means))


def test_gdumb_forgets_all_but_its_memory():
    method = make(GDumb, random_backbone(depth=1), memory={"size": 8})
    method.begin_task(images_task(0))
    moved(method)
    method.begin_task(images_task(1))
    assert torch.bincount(method.memory.y).tolist() == [2] * 4
    for name, p in random_backbone(depth=1).named_parameters():
        assert torch.equal(method.backbone.get_parameter(name), p)
    (stage,) = method.stages(images_task(1))
    assert stage.data is not None
    row, label = stage.data[5, 0]
    assert label == method.memory.y[5]
    expected = F.cross_entropy(method.head(method.backbone(method.memory.x[5:6])), method.memory.y[5:6])
    torch.testing.assert_close(stage.loss(row[None], torch.tensor([label]))["ce"], expected)


# Bias correction


def test_bic_holds_samples_out_of_training_and_exemplars():
    method = make(BiC, random_backbone(depth=1), memory={"size": 8}, held_out=0.25)
    task = images_task(0)
    method.begin_task(task)
    held = method.held_rows.tolist()
    assert len(held) == 2
    (train,) = method.stages(task)
    assert train.data is not None
    assert sorted([*train.data.rows, *held]) == list(range(12))
    with torch.no_grad():
        method.end_task(task)
    assert torch.bincount(method.memory.y).tolist() == [3, 3]
    assert not any(torch.equal(a, b) for a in method.memory.x for b in method.held.x)
    method.begin_task(images_task(1))
    assert torch.bincount(method.held.y).tolist() == [1] * 4
    assert [stage.name for stage in method.stages(images_task(1))] == ["fit", "correct"]


def test_bic_corrects_the_newest_classes_and_distils_from_the_corrected_model():
    method = begun(BiC, 1, memory={"size": 12})
    method.scale.data, method.shift.data = torch.tensor(0.5), torch.tensor(-2.0)
    x, y = images(4, seed=9), torch.tensor([2, 3, 2, 3])
    plain = method.head(method.backbone(x))
    corrected = torch.cat([plain[:, :2], 0.5 * plain[:, 2:] - 2], dim=1)
    torch.testing.assert_close(method.scores(x), corrected)
    method.held_logits = plain.detach()
    loss = method.correction_loss(torch.tensor([1, 3]), y[[1, 3]])["ce"]
    torch.testing.assert_close(loss, F.cross_entropy(corrected[[1, 3]], y[[1, 3]]))
    with torch.no_grad():
        method.end_task(images_task(1))
    method.begin_task(images_task(2))
    torch.testing.assert_close(method.old.logits(method.backbone, x), corrected.detach())
    torch.testing.assert_close(method.scores(x)[:, :4], plain)  # a new task starts without a correction
    moved(method)
    method.memory.keep(torch.arange(0))
    losses = method.joined_loss(x, y + 2, 12)
    now = method.head(method.backbone(x))
    kd = -((corrected / 2).softmax(1) * (now[:, :4] / 2).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(losses["kd"], 4 / 6 * kd)
    torch.testing.assert_close(losses["ce"], 2 / 6 * F.cross_entropy(now, y + 2))


# Regularisation


def test_an_old_model_keeps_its_answers():
    backbone = random_backbone(depth=2)
    weight, bias = torch.randn(3, 16), torch.randn(3)
    x = images(4)
    before = F.linear(backbone(x), weight, bias)
    old = OldModel()
    old.copy(backbone, weight, bias)
    for p in backbone.parameters():
        p.data += 0.1
    torch.testing.assert_close(old.logits(backbone, x), before, rtol=0, atol=0)
    assert not torch.allclose(F.linear(backbone(x), weight, bias), before)
    old.drop()
    assert len(old) == 0 == sum(b.numel() for b in old.buffers())


def test_lwf_learns_the_task_and_holds_old_answers():
    method = begun(LwF, 1, weight=3.0, temperature=2.0)
    x, y = images(4, seed=9), torch.tensor([2, 3, 2, 3])
    moved(method)
    losses = method.loss(x, y)
    logits, old = method.head(method.backbone(x)), method.old.logits(method.backbone, x)
    assert old.shape == (4, 2)
    torch.testing.assert_close(losses["ce"], F.cross_entropy(logits[:, 2:], y - 2))
    torch.testing.assert_close(losses["kd"], 3 * distillation(logits[:, :2], old, 2.0))
    by_hand = distillation(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2 * math.log(3)]]), 2.0)
    p = math.e / (1 + math.e)
    torch.testing.assert_close(by_hand, torch.tensor(-(0.25 * math.log(p) + 0.75 * math.log(1 - p))))


def test_fisher_information_of_a_linear_head():
    """For logits W f + b, the gradient of log p(y) by the bias is ``onehot(y) - p``, and by W times f."""
    method = begun(EWC, 0, fisher_samples=3)
    task = images_task(0)
    torch.manual_seed(0)
    fisher = method.fisher(task)
    torch.manual_seed(0)
    rows = torch.randperm(12)[:3]
    weight, bias = torch.zeros(2, 16), torch.zeros(2)
    for x in images(12, seed=0)[rows].split(1):
        f = method.backbone(x).detach()[0]
        p = method.scores(x).detach().softmax(1)[0]
        residual = F.one_hot(p.multinomial(1)[0], 2) - p
        bias += residual.square() / 3
        weight += (residual[:, None] * f).square() / 3
    torch.testing.assert_close(fisher[-34:], torch.cat([weight.flatten(), bias]))
    assert fisher[:-34].max() > 0


@pytest.mark.parametrize("online", [False, True])
def test_penalties_of_all_tasks_are_one(online, monkeypatch):
    """The gradient is that of a penalty per task, or of one at the newest values."""
    options = {"online": True, "gamma": 0.5} if online else {}
    method = make(EWC, random_backbone(depth=1), weight=2.0, **options)
    rng, fishers, values = torch.Generator().manual_seed(0), [], []
    for i in range(2):
        method.begin_task(images_task(i))
        moved(method)
        values.append(torch.cat([p.detach().flatten() for p in method.protected()]))
        fishers.append(torch.rand(len(values[-1]), generator=rng))
        monkeypatch.setattr(method, "fisher", lambda task, i=i: fishers[i])
        with torch.no_grad():
            method.end_task(images_task(i))
    method.begin_task(images_task(2))
    moved(method)
    penalty = method.loss(images(4), torch.tensor([4, 5, 4, 5]))["ewc"]
    params = method.protected()
    got = torch.cat([g.flatten() for g in torch.autograd.grad(penalty, params[:-2])])
    now, n = torch.cat([p.detach().flatten() for p in params[:-2]]), len(values[0])
    old = torch.zeros_like(now)
    if online:
        old[:n] = 0.5 * fishers[0]
        expected = 2 * (old + fishers[1]) * (now - values[1])
    else:
        old[:n] = fishers[0] * (now[:n] - values[0])
        expected = 2 * (old + fishers[1] * (now - values[1]))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


# Slow learner


def test_slca_divides_logits_by_the_mean_length_of_tasks():
    """Blocks (3, 4) and (12,) have lengths 5 and 12, with a mean of 8.5."""
    head = TaskHeads(1)
    for rows in ([[3.0], [4.0]], [[12.0]]):
        head.grow(len(rows), device=torch.device("cpu"))
        head.weight[-1].data = torch.tensor(rows)
    torch.testing.assert_close(Normalised(head)(torch.ones(1, 1)), torch.tensor([[3.0, 4.0, 12.0]]) / 0.85)


def test_slca_aligns_a_copy_of_the_head():
    method = begun(SLCA, 1)
    task = images_task(1)
    fit, align = method.stages(task)
    assert align.prepare is not None
    with torch.no_grad():
        align.prepare()
    x = images(3, seed=9)
    features = method.backbone(task.extract_features(lambda x: x)[0])
    torch.testing.assert_close(method.alignment.gaussians.means[2], features[::2].mean(0))
    torch.testing.assert_close(method.scores(x), method.head(method.backbone(x)))
    trained = {id(p) for p in align.params or []}
    assert trained == {id(p) for p in method.aligned.parameters()}
    assert not trained & {id(p) for p in fit.params or []}
    method.aligned.weight[0].data += 1
    assert not torch.allclose(method.scores(x)[:, 0], method.head(method.backbone(x))[:, 0])


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (LwF, {"weight": 0.0}, "method.weight and method.temperature must be positive"),
        (EWC, {"online": True, "gamma": 0.0}, r"method.gamma in \(0, 1\]"),
        (EWC, {"gamma": 0.5}, "method.gamma=0.5 has no effect with method.online=False"),
        (DER, {"alpha": -1.0}, "must not be negative"),
        (DER, {"alpha": 0.0}, "one of them must be positive"),
        (BiC, {"held_out": 0.9}, "method.held_out must lie in"),
        (GDumb, {"memory": "herding"}, "method.memory must be one of"),
    ],
)
def test_options_are_checked(cls, options, says):
    with pytest.raises(InputError, match=says):
        make(cls, random_backbone(depth=1), **options)
