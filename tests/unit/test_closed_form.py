"""Closed-form classifiers of frozen features, against their equations written out."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.contract.harness import inputs_of, learn, make, scores
from ostinato.contract.tiny_models import tiny_stream
from ostinato.errors import InputError
from ostinato.methods.base import Additive
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.mahalanobis import ClassMahalanobis
from ostinato.nn.quadratic import QuadraticDiscriminant
from ostinato.nn.ridge import PENALTIES, SCALE, RandomRidge
from ostinato.nn.ridge_gaussians import RidgeAndGaussians
from ostinato.nn.shifted import ShiftedGram, pivoted_cholesky
from ostinato.nn.statistics import ClassMeans, between
from ostinato.streams import StreamOptions, TaskStream

D, C = 6, 4
METHODS = ("simplecil", "slda", "ranpac", "fecam")


def samples(n: int = 60, noise: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (n, D) around a mean per class, and labels (n,), every class among them."""
    rng = torch.Generator().manual_seed(seed)
    means = 2 * torch.randn(C, D, generator=torch.Generator().manual_seed(9))
    labels = torch.arange(n) % C
    return means[labels] + noise * torch.randn(n, D, generator=rng), labels


def ridge(m: int = 20, penalty: float | None = None) -> RandomRidge:
    torch.manual_seed(3)
    return RandomRidge(D, m, penalty)


# Ridge on random features


@pytest.mark.parametrize("penalty", [1.0, 1e4])
def test_ridge_solves_the_normal_equations(penalty: float) -> None:
    x, y = samples()
    part = ridge(penalty=penalty)
    part.add(x, y, C)
    h = x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) * SCALE
    h = np.maximum(h @ part.projection.double().numpy(), 0)
    weight = np.linalg.solve(h.T @ h + penalty * np.eye(20), h.T @ np.eye(C)[y.numpy()])
    assert np.allclose(part.weight.numpy(), weight.T, rtol=1e-5, atol=1e-7)
    assert np.allclose(part(x).numpy(), h @ weight, atol=1e-4)
    assert float(part.chosen) == penalty


def exact_validation(part: RandomRidge, x: Tensor, y: Tensor, penalty: float) -> tuple[float, float]:
    """Generalised and leave-one-out cross-validation by the hat matrix of the samples."""
    h = part.hidden(x.double()).numpy()
    hat = h @ np.linalg.solve(h.T @ h + penalty * np.eye(h.shape[1]), h.T)
    residuals = np.eye(C)[y.numpy()] - hat @ np.eye(C)[y.numpy()]
    n = len(h)
    generalised = n * (residuals**2).sum() / (n - np.trace(hat)) ** 2
    left_out = ((residuals / (1 - np.diag(hat))[:, None]) ** 2).sum() / n
    return float(generalised), float(left_out)


@pytest.mark.parametrize("penalty", [1e2, 1e4, 1e6])
def test_validation_is_that_of_the_hat_matrix(penalty: float) -> None:
    x, y = samples(400, noise=2.0)
    part = ridge(200)
    part.add(x, y, C)
    exact, _ = exact_validation(part, x, y, penalty)
    value, _ = part._validation(ShiftedGram(part.gram, 400), penalty)
    assert value == pytest.approx(exact, rel=0.03)


def test_the_penalty_chosen_is_as_good_as_that_of_leaving_one_out() -> None:
    x, y = samples(200, noise=2.0)
    part = ridge(100)
    part.add(x, y, C)
    left_out = {penalty: exact_validation(part, x, y, penalty)[1] for penalty in PENALTIES}
    assert left_out[float(part.chosen)] <= 1.02 * min(left_out.values())
    assert max(left_out.values()) > 1.2 * min(left_out.values())


def test_noise_is_met_with_a_larger_penalty() -> None:
    chosen = []
    for noise in (0.1, 3.0):
        part = ridge(100)
        part.add(*samples(200, noise=noise), C)
        chosen.append(float(part.chosen))
    assert chosen[0] < chosen[1]


def test_a_fit_that_repeats_its_samples_is_not_chosen() -> None:
    """With more features than samples, small penalties leave no residual and no degrees of freedom."""
    x, y = samples(40, noise=3.0)
    part = ridge(400)
    part.add(x, y, C)
    assert part._validation(ShiftedGram(part.gram, 40), 1e-2)[0] == float("inf")
    h = part.hidden(x.double()).numpy()
    degrees = np.trace(h @ np.linalg.solve(h.T @ h + float(part.chosen) * np.eye(400), h.T))
    assert degrees < 35


def test_a_penalty_that_leaves_a_singular_matrix_is_refused() -> None:
    with pytest.raises(InputError, match=r"method\.penalty=1e-300 leaves the Gram matrix of 8 samples singular"):
        ridge(50, 1e-300).add(*samples(8), C)


@pytest.mark.parametrize("penalty", [1e-2, 1.0, 1e8])
def test_few_samples_are_solved_for_by_their_rank(penalty: float) -> None:
    """Repeated samples and features that are never active lower the rank further."""
    x, y = samples(40)
    part = ridge(200)
    part.add(torch.cat([x, x[:5]]), torch.cat([y, y[:5]]), C)
    part.gram[7] = part.gram[:, 7] = 0
    part.classes.sums[:, 7] = 0
    few, whole = ShiftedGram(part.gram, 45), ShiftedGram(part.gram, 200)
    assert few.thin is not None
    assert whole.thin is None
    assert len(few.thin) <= 40
    right = part.classes.sums.T
    torch.testing.assert_close(few.solve(penalty, right), whole.solve(penalty, right), rtol=1e-6, atol=1e-9)


def test_a_matrix_of_a_larger_rank_is_solved_for_whole() -> None:
    h = torch.randn(30, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert pivoted_cholesky(h.T @ h, 20) is None
    factor = pivoted_cholesky(h.T @ h, 30)
    assert factor is not None
    torch.testing.assert_close(factor.T @ factor, h.T @ h)
    system, right = ShiftedGram(h.T @ h, 20), torch.eye(100, dtype=torch.float64)
    torch.testing.assert_close(system.solve(1.0, right), torch.linalg.inv(h.T @ h + right))


def test_other_projections_do_not_add() -> None:
    one, other = ridge(), RandomRidge(D, 20)
    one.add(*samples(), C)
    other.add(*samples(), C)
    with pytest.raises(InputError, match="same seed"):
        one.merge(other, torch.arange(C))


def test_the_penalty_below_is_a_tenth_of_the_best() -> None:
    x, y = samples(200, noise=2.0)
    best, below = ridge(30), RandomRidge(D, 30, below=True)
    below.projection = best.projection
    best.add(x, y, C)
    below.add(x, y, C)
    assert float(below.chosen) == pytest.approx(float(best.chosen) / 10)


def test_gaussians_follow_what_is_loaded() -> None:
    x, y = samples()
    torch.manual_seed(4)
    part, other = QuadraticDiscriminant(D, 3), QuadraticDiscriminant(D, 3)
    part.add(x, y, C)
    other.add(x, 3 - y, C)
    before = other(x)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(x), part(x))
    assert not torch.allclose(other(x), before)


# Mahalanobis distances


@pytest.mark.parametrize(("gamma1", "gamma2"), [(1.0, 0.0), (0.7, 0.2)])
def test_distances_are_those_under_normalised_covariances(gamma1: float, gamma2: float) -> None:
    x, y = samples()
    part = ClassMahalanobis(D, gamma1=gamma1, gamma2=gamma2)
    part.add(x, y, C)
    found = part(x[:5]).numpy()
    for c in range(C):
        rows = x[y == c].double().numpy()
        cov = np.cov(rows.T)
        v1, v2 = cov.diagonal().mean(), cov[~np.eye(D, dtype=bool)].mean()
        shrunk = cov + gamma1 * v1 * np.eye(D) + gamma2 * v2 * (1 - np.eye(D))
        std = np.sqrt(shrunk.diagonal())
        inverse = np.linalg.inv(shrunk / np.outer(std, std))
        apart = x[:5].double().numpy() - rows.mean(0)
        assert np.allclose(found[:, c], np.einsum("bi,ij,bj->b", apart, inverse, apart), rtol=1e-4)


def test_a_class_that_does_not_vary_has_plain_distances() -> None:
    part = ClassMahalanobis(2)
    part.add(torch.tensor([[0.0, 0.0], [2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1, 1]), 2)
    assert torch.allclose(part(torch.tensor([[0.0, 1.0]])), torch.tensor([[1.0, 5.0]]))


def test_distances_follow_what_is_loaded() -> None:
    x, y = samples()
    part, other = ClassMahalanobis(D), ClassMahalanobis(D)
    part.add(x, y, C)
    other.add(3 * x, y, C)
    before = other(x)
    other.load_state_dict(part.state_dict())
    assert torch.equal(other(x), part(x))
    assert not torch.allclose(other(x), before)


def test_fecam_transforms_before_it_scales() -> None:
    plain, powered = make("fecam"), make("fecam", tukey=0.5)
    x = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    feature = plain.query(x)
    assert bool((feature < 0).any())
    assert torch.allclose(plain.features(x), F.normalize(feature, dim=1))
    assert torch.allclose(powered.features(x), F.normalize(feature.sign() * feature.abs().sqrt(), dim=1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fecam", {"gamma1": 0.0}, "gamma1 must be positive"),
        ("fecam", {"gamma1": 0.5, "gamma2": 0.6}, "gamma2 in"),
        ("fecam", {"tukey": 0.0}, "tukey must lie in"),
        ("ranpac", {"n_random": 0}, "n_random must be at least 1"),
        ("ranpac", {"penalty": 0.0}, "penalty must be a positive number"),
    ],
)
def test_options_outside_their_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(name, **options)


def test_random_features_follow_the_width_of_features() -> None:
    assert make("ranpac").head.projection.shape == (16, 160)
    assert make("ranpac", n_random=7).head.projection.shape == (16, 7)


# Sums


def test_joined_classes_scatter_as_all_their_samples() -> None:
    x, y = samples(50)
    one, other = ClassMeans(D), ClassMeans(D)
    one.grow(C)
    one.update(x[:30], y[:30])
    other.grow(2)
    other.update(x[30:][y[30:] < 2], y[30:][y[30:] < 2])
    apart, weights = between(one, other, torch.tensor([1, C]))  # its class 0 is 1 here, its class 1 is new
    a, b = x[:30][y[:30] == 1].double(), x[30:][y[30:] == 0].double()

    def scatter(rows: Tensor) -> Tensor:
        return (rows - rows.mean(0)).T @ (rows - rows.mean(0))

    added = scatter(torch.cat([a, b])) - scatter(a) - scatter(b)
    assert torch.allclose(weights[0] * torch.outer(apart[0], apart[0]), added)
    assert float(weights[1]) == 0


def beside() -> RidgeAndGaussians:
    return RidgeAndGaussians(ridge(), QuadraticDiscriminant(D, 3))


@pytest.mark.parametrize("make_part", [ridge, lambda: LinearDiscriminant(D), lambda: ClassMahalanobis(D), beside])
def test_merged_parts_are_those_of_all_samples(make_part: Any) -> None:
    """A class that both have samples of, classes of one alone, in another order."""
    x, y = samples(80)
    whole, one, other = make_part(), make_part(), make_part()
    whole.add(x, y, C)
    mine = (y < 2) & ~((y == 1) & (torch.arange(80) > 40))
    one.add(x[mine], y[mine], 2)
    other.add(x[~mine], 3 - y[~mine], 3)
    one.merge(other, torch.tensor([3, 2, 1]))
    assert len(one) == C
    assert torch.allclose(one(x), whole(x), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_classes_has_no_influence(name: str) -> None:
    """Three orders, in tasks of other sizes."""
    source, x = tiny_stream().source, inputs_of(tiny_stream())
    found = []
    orders = list(permutations(source.class_names))
    for order, step in ((orders[0], 2), (orders[50], 1), (orders[119], 5)):
        tasks = [list(order[i : i + step]) for i in range(0, 5, step)]
        stream = TaskStream(source, StreamOptions(tasks=tasks, validation=0))
        method = make(name)
        assert isinstance(method, Additive)
        learn(method, stream)
        columns = [stream.class_names.index(name) for name in source.class_names]
        found.append(scores(method, x)[:, columns])
    assert torch.allclose(found[1], found[0], atol=1e-5, rtol=1e-5)
    assert torch.allclose(found[2], found[0], atol=1e-5, rtol=1e-5)
