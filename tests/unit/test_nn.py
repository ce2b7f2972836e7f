"""Growing state, heads, matching and class statistics."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from ostinato.nn import ClassMeans, Growing, PerTask, TaskHeads, cosine
from ostinato.nn.discriminant import LinearDiscriminant

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def per_task(n, **options):
    module = PerTask(**options)
    for i in range(n):
        module.add(draw(2, 3, seed=i))
    return module


# PerTask


@pytest.mark.parametrize(("freeze", "want"), [(True, [False, False, True]), (False, [True, True, True])])
def test_only_the_newest_task_trains(freeze, want):
    assert [p.requires_grad for p in per_task(3, freeze_old=freeze)] == want


def test_stacked_and_joined_keep_the_order_and_send_gradients_to_the_newest():
    module = per_task(3)
    assert torch.equal(module.stacked(), torch.stack([draw(2, 3, seed=i) for i in range(3)]))
    assert torch.equal(module.joined(), torch.cat([draw(2, 3, seed=i) for i in range(3)]))
    (module.stacked().sum() + 2 * module.joined().sum()).backward()
    assert [p.grad is None for p in module] == [True, True, False]
    assert torch.equal(module[2].grad, torch.full((2, 3), 3.0))


def test_adding_leaves_earlier_values_and_objects_alone():
    module = per_task(1)
    first = module[0]
    module.add(draw(2, 3, seed=9))
    assert module[0] is first
    assert torch.equal(first, draw(2, 3, seed=0))


@pytest.mark.parametrize("have", [0, 1, 3])
@pytest.mark.parametrize("freeze", [True, False])
def test_a_longer_state_loads(have, freeze):
    module = per_task(have, freeze_old=freeze)
    module.load_state_dict({k: v + 1 for k, v in per_task(3).state_dict().items()})
    assert len(module) == 3
    assert torch.equal(module.stacked(), per_task(3).stacked() + 1)
    assert [p.requires_grad for p in module] == [not freeze, not freeze, True]


def test_a_shorter_state_is_refused():
    with pytest.raises(RuntimeError, match=r'Missing key.*"2"'):
        per_task(3).load_state_dict(per_task(2).state_dict())


def test_parameters_of_different_sizes_load_inside_a_module():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = PerTask()
            self.keys = PerTask()

    source, target = Owner(), Owner()
    for n in (2, 11, 3):
        source.rows.add(draw(n, 4, seed=n))
    source.keys.add(draw(5))
    target.load_state_dict({k: v.clone() for k, v in source.state_dict().items()})
    assert [len(p) for p in target.rows] == [2, 11, 3]
    assert torch.equal(target.rows.joined(), source.rows.joined())
    assert len(target.keys) == 1


def test_more_than_ten_tasks_load_in_order():
    module = PerTask()
    module.load_state_dict(per_task(12).state_dict())
    assert torch.equal(module.stacked(), per_task(12).stacked())


def test_a_copy_loads_into_itself():
    module = per_task(1)
    twin = copy.deepcopy(module)
    twin.load_state_dict(per_task(2).state_dict())
    assert (len(module), len(twin)) == (1, 2)


# Growing


class Memory(Growing):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, 3))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("nothing", None)


def test_buffers_take_the_size_of_the_state():
    owner = nn.ModuleDict({"a": Memory(), "b": Memory()})
    state = {
        "a.rows": draw(4, 3), "a.counts": torch.arange(4), "b.rows": draw(2, 3), "b.counts": torch.arange(2),
    }  # fmt: skip
    owner.load_state_dict(state)
    assert torch.equal(owner["a"].rows, draw(4, 3))
    assert torch.equal(owner["a"].counts, torch.arange(4))
    assert owner["b"].rows.shape == (2, 3)
    owner.load_state_dict(state | {"a.rows": draw(1, 3), "a.counts": torch.arange(1)})
    assert owner["a"].rows.shape == (1, 3), "a shorter stream loads into a longer one's object"
    with pytest.raises(RuntimeError, match="Missing key"):
        owner.load_state_dict({k: v for k, v in state.items() if k != "b.rows"})


def test_resized_buffers_keep_their_type():
    memory = Memory()
    memory.load_state_dict({"rows": draw(4, 3).double(), "counts": torch.arange(4, dtype=torch.int32)})
    assert memory.rows.dtype == torch.float32
    assert memory.counts.dtype == torch.int64


# Heads


def heads(*sizes, freeze_old=True):
    torch.manual_seed(0)
    head = TaskHeads(5, freeze_old=freeze_old)
    for n in sizes:
        head.grow(n, device=CPU)
    for p in head.bias:
        p.data.normal_()
    return head


def test_all_classes_are_the_blocks_side_by_side():
    head, x = heads(2, 3, 1), draw(4, 5)
    want = torch.cat([x @ w.T + b for w, b in zip(head.weight, head.bias, strict=True)], 1)
    assert head(x).shape == (4, 6)
    torch.testing.assert_close(head(x), want)


def test_local_logits_are_those_of_the_newest_task():
    head, x = heads(2, 3), draw(4, 5)
    torch.testing.assert_close(head.local(x), head(x)[:, 2:])


def test_new_rows_are_small_and_unbiased():
    torch.manual_seed(0)
    head = TaskHeads(64)
    head.grow(50, device=CPU)
    assert head.weight[0].shape == (50, 64)
    assert not head.bias[0].any()
    assert head.weight[0].std().item() == pytest.approx(0.02, rel=0.1)
    assert abs(head.weight[0].mean().item()) < 0.002


def test_only_new_rows_get_gradients_unless_asked():
    for freeze, want in ((True, [False, True]), (False, [True, True])):
        head = heads(2, 3, freeze_old=freeze)
        head(draw(4, 5)).square().sum().backward()
        assert [p.grad is not None for p in head.weight] == want
        assert [p.grad is not None for p in head.bias] == want


def test_features_in_bf16_are_scored_in_fp32():
    head, x = heads(2), draw(4, 5).bfloat16()
    assert head(x).dtype == head.local(x).dtype == torch.float32
    torch.testing.assert_close(head(x), head(x.float()))


def test_scored_in_fp32_under_autocast():
    head = heads(2)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(draw(4, 5)).dtype == torch.float32


# Matching


def test_cosine_against_numpy():
    q, k = draw(4, 6), draw(3, 6, seed=1)
    a, b = q.double().numpy(), k.double().numpy()
    want = a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)[None]
    np.testing.assert_allclose(cosine(q, k).numpy(), want, atol=1e-6)
    np.testing.assert_allclose(cosine(7 * q, 0.1 * k).numpy(), want, atol=1e-6)
    assert cosine(q.bfloat16(), k).dtype == torch.float32
    assert not cosine(torch.zeros(2, 6), k).isnan().any()


# Class means


@settings(max_examples=30, deadline=None)
@given(data=st.data(), n=st.integers(0, 40), n_classes=st.integers(1, 5))
def test_means_equal_numpy_in_any_order_and_any_batches(data, n, n_classes):
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    x, y = rng.normal(3, 10, (n, 4)).astype(np.float32), rng.integers(0, n_classes, n)
    means = ClassMeans(4)
    means.grow(n_classes)
    order = rng.permutation(n)
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    for rows in np.split(order, cuts):
        means.update(torch.from_numpy(x[rows]), torch.from_numpy(y[rows]))
    got = means.means()
    assert got.dtype == torch.float32
    for c in range(n_classes):
        want = x[y == c].astype(np.float64).mean(0) if (y == c).any() else np.zeros(4)
        np.testing.assert_allclose(got[c].numpy(), want, rtol=2e-7, atol=1e-9)
    assert means.counts.tolist() == np.bincount(y, minlength=n_classes).tolist()


def test_growth_keeps_what_is_there():
    means = ClassMeans(2)
    means.grow(2)
    means.update(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 1]))
    means.grow(1)
    means.update(torch.tensor([[5.0, 6.0], [8.0, 9.0]]), torch.tensor([2, 1]))
    assert means.means().tolist() == [[0, 0], [4, 5], [5, 6]]
    assert means.counts.tolist() == [0, 3, 1]


def test_many_samples_do_not_drift():
    """Sums in fp32 would lose the small part; fp64 does not."""
    means = ClassMeans(1)
    means.grow(1)
    means.update(torch.full((1, 1), 2.0**25), torch.zeros(1, dtype=torch.int64))
    for _ in range(16):
        means.update(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64))
    assert means.sums.item() == 2**25 + 16


def test_labels_outside_the_classes_are_refused():
    means = ClassMeans(2)
    means.grow(1)
    with pytest.raises((RuntimeError, IndexError)):
        means.update(torch.ones(1, 2), torch.tensor([1]))


def test_means_do_not_track_gradients():
    means = ClassMeans(2)
    means.grow(1)
    means.update(torch.ones(1, 2, requires_grad=True) * 2, torch.tensor([0]))
    assert not means.means().requires_grad


def test_means_load_into_an_empty_object():
    means = ClassMeans(2)
    means.grow(3)
    means.update(draw(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
    twin = ClassMeans(2)
    twin.load_state_dict(means.state_dict())
    assert torch.equal(twin.means(), means.means())
    twin.grow(1)
    assert twin.means().shape == (4, 2)


# Linear discriminant


def _clusters(n_classes: int, per_class: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    spread = torch.linspace(0.2, 3, dim)
    x = torch.randn(n_classes, dim, generator=rng)[labels] + spread * torch.randn(len(labels), dim, generator=rng)
    return x, labels


@pytest.mark.parametrize("per_class", [3, 40])
def test_discriminant_is_that_of_scikit_learn_at_its_shrinkage(per_class):
    x, labels = _clusters(6, per_class, 12)
    ours = LinearDiscriminant(12)
    ours.add(x, labels, 6)
    covariance = ours.covariance()
    off = ~torch.eye(12, dtype=torch.bool)
    share = 1 - float((covariance[off] / (ours.scatter / ours.degrees)[off]).mean())
    assert 0 < share < 1
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share, priors=[1 / 6] * 6).fit(x, labels)
    test, _ = _clusters(6, 5, 12)
    # Theirs divides by the samples, ours by the degrees of freedom, which is one factor in front of everything.
    factor = len(x) / (len(x) - 6)
    expected = torch.tensor(theirs.decision_function(test)) / factor
    scores = ours(test)
    torch.testing.assert_close(
        scores - scores.mean(1, keepdim=True), (expected - expected.mean(1, keepdim=True)).float()
    )


def test_discriminant_shrinks_less_the_more_samples_there_are():
    shares = []
    for per_class in (3, 40, 1000):
        x, labels = _clusters(6, per_class, 12)
        d = LinearDiscriminant(12)
        d.add(x, labels, 6)
        sample = d.scatter / d.degrees
        # Chen et al. 2010, eq. 23, written with eigenvalues.
        values = torch.linalg.eigvalsh(sample)
        squares, square = values.square().sum(), values.sum() ** 2
        share = ((1 - 2 / 12) * squares + square) / ((len(x) - 6 + 1 - 2 / 12) * (squares - square / 12))
        expected = (1 - share) * sample + share * values.mean() * torch.eye(12)
        torch.testing.assert_close(d.covariance(), expected)
        shares.append(float(share))
    assert shares == sorted(shares, reverse=True)


def test_discriminant_of_classes_that_come_later_is_that_of_all_at_once():
    x, labels = _clusters(6, 9, 12)
    whole, parts = LinearDiscriminant(12), LinearDiscriminant(12)
    whole.add(x, labels, 6)
    for first, n in ((0, 1), (1, 2), (3, 3)):
        rows = (labels >= first) & (labels < first + n)
        order = torch.randperm(int(rows.sum()), generator=torch.Generator().manual_seed(first))
        parts.add(x[rows][order], labels[rows][order], n)
    torch.testing.assert_close(parts(x), whole(x))


def test_discriminant_of_single_samples_takes_the_nearest():
    x, labels = _clusters(6, 1, 12)
    d = LinearDiscriminant(12)
    d.add(x, labels, 6)
    test, _ = _clusters(6, 5, 12)
    assert torch.equal(d(test).argmax(1), torch.cdist(test, x).argmin(1))
