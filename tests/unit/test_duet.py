"""Duet: features, adaptation and classifier, against their parts written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from ostinato import Learner
from ostinato.backbones import Backbone, Edit, LayerPlan, LinearEdit, Tokens
from ostinato.contract.harness import SETTINGS, inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import tiny_stream
from ostinato.errors import InputError
from ostinato.learner import BackboneSpec
from ostinato.methods.base import Stage
from ostinato.methods.duet import Duet, some_of
from ostinato.methods.parts.banks import at
from ostinato.nn.discriminant import shrunk
from ostinato.nn.ridge import RandomRidge, random_width
from ostinato.nn.ridge_gaussians import RidgeAndGaussians
from ostinato.streams import StreamOptions, TaskStream, open_source
from ostinato.training.callbacks import Callback


class Stages(Callback):
    """Task and name of every stage that is trained."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:
        self.seen.append((task, stage.name))


def duet(kind: Any = "image", **options: Any) -> Duet:
    method = make("duet", kind, **options)
    assert isinstance(method, Duet)
    return method


def moved(method: Duet) -> Duet:
    """With updates that are not zero."""
    draw = torch.Generator().manual_seed(1)
    method.bank.begin_task(torch.device("cpu"))
    with torch.no_grad():
        for p in method.bank.up.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    return method


def ups(method: Duet) -> list[Tensor]:
    return [p.detach().clone() for p in method.bank.up.parameters()]


def images() -> Tensor:
    return inputs_of(tiny_stream())[:6]


# Features


def test_the_first_half_of_the_features_is_that_of_the_plain_encoder() -> None:
    method, x = moved(duet()), images()
    f = method.features(x)
    assert f.shape == (6, 32)
    assert torch.equal(f[:, :16], F.normalize(method.query(x), dim=-1))
    assert not torch.allclose(f[:, :16], f[:, 16:], atol=1e-2)


def test_the_second_half_is_that_of_the_encoder_under_the_updates() -> None:
    method, x = moved(duet(layers=(7, 2), rank=3)), images()
    edits = {}
    for layer in (7, 2):
        factors = {name: (at(method.bank.down, layer, name)[0], at(method.bank.up, layer, name)[0]) for name in "qv"}
        edits[layer] = Edit(linear={name: LinearEdit(down=a, up=b) for name, (a, b) in factors.items()})
    expected = F.normalize(method.backbone(x, LayerPlan(edits)), dim=-1)
    assert torch.allclose(method.features(x)[:, 16:], expected, atol=1e-6)


def test_the_adapted_encoder_alone_is_the_second_half() -> None:
    both, adapted, x = moved(duet()), moved(duet(encoders="adapted")), images()
    adapted.bank.load_state_dict(both.bank.state_dict())
    f = adapted.features(x)
    assert f.shape == (6, 16)
    assert torch.equal(f, both.features(x)[:, 16:])


def test_updates_start_at_nothing_in_the_upper_half() -> None:
    method, x = duet(), images()
    method.bank.begin_task(torch.device("cpu"))
    f = method.features(x)
    assert method.layers == (6, 7, 8, 9, 10, 11)
    assert torch.allclose(f[:, :16], f[:, 16:], atol=1e-6)


# Training


def test_the_first_task_alone_trains() -> None:
    stream, seen = tiny_stream(), Stages()
    method = learn(duet(), stream, callback=seen)
    assert seen.seen == [(0, "adapt")]
    assert all(bool(up.any()) for up in ups(method))
    assert not any(p.requires_grad for p in method.parameters())
    first = learn(duet(), stream, upto=1)
    assert all(torch.equal(a, b) for a, b in zip(ups(method), ups(first), strict=True))
    assert scores(method, images()).shape == (6, 5)


def test_training_lowers_the_loss_of_the_first_task() -> None:
    class Losses(Callback):
        def __init__(self) -> None:
            self.ce: list[float] = []

        def on_step(self, position: Any, losses: dict[str, float], optimizer: Any, n: int) -> None:
            self.ce.append(losses["ce"])

    settings, told = replace(SETTINGS, overrides={"epochs": 20, "batch_size": 24, "lr": 1e-2}), Losses()
    learn(duet(keep=1.0), tiny_stream(), upto=1, settings=settings, callback=told)
    assert told.ce[-1] < 0.5 * told.ce[0]


def test_the_classifier_starts_at_the_class_means() -> None:
    method, stream = duet(keep=1.0), tiny_stream()
    task = learn_task_of(method, stream, 0)
    method.begin_task(task)
    (stage,) = method.stages(task)
    assert stage.prepare is not None
    with torch.no_grad():
        stage.prepare()
    x, y = next(iter(task.eval_batches(list(range(24)))))
    q, labels = task.extract_features(method.query)
    means = torch.stack([q[labels == c].mean(0) for c in (0, 1)])
    logits = 20 * F.normalize(method.query(x), dim=1) @ F.normalize(means, dim=1).T
    assert torch.allclose(method.loss(x, y)["ce"], F.cross_entropy(logits, y), atol=1e-4)


def test_a_first_task_of_one_class_trains_nothing() -> None:
    seen = Stages()
    method = learn(duet(), tiny_stream(n_classes=3, step=1), callback=seen)
    assert seen.seen == []
    assert not any(bool(up.any()) for up in ups(method))
    assert not any(p.requires_grad for p in method.parameters())
    assert scores(method, images()).shape == (6, 3)


@pytest.mark.parametrize(("share", "kept"), [(0.5, 4), (0.25, 2), (0.01, 1), (0.9, 7)])
def test_a_share_of_the_patches_and_the_first_token_are_kept(share: float, kept: int) -> None:
    h = torch.arange(9.0)[None, :, None] + 100 * torch.arange(2.0)[:, None, None]
    found = some_of(Tokens(h), share).h[..., 0]
    assert found.shape == (2, 1 + kept)
    assert found[:, 0].tolist() == [0, 100]
    assert torch.equal(found[1] - 100, found[0])
    assert len(set(found[0, 1:].tolist())) == kept
    assert min(found[0, 1:].tolist()) >= 1


def test_training_leaves_patches_out_and_scoring_reads_all(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    whole = Backbone.features

    def reads(self: Backbone, tokens: Tokens, plan: Any = None, *, start: int = 0) -> Tensor:
        if plan is not None:
            lengths.append(tokens.h.shape[-2])
        return whole(self, tokens, plan, start=start)

    monkeypatch.setattr(Backbone, "features", reads)
    method = learn(duet(keep=0.5), tiny_stream(), upto=1)
    assert set(lengths[:6]) == {1 + 2}
    assert set(lengths[6:]) == {1 + 4}
    lengths.clear()
    scores(method, images())
    assert set(lengths) <= {1 + 4}


def test_an_image_passes_the_encoders_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is scored after every task; its features under finished updates are looked up."""
    method, x, counted = learn(duet(), tiny_stream(), upto=1), images(), []
    found = scores(method, x)
    monkeypatch.setattr(Backbone, "run", lambda *_, **__: counted.append(1))
    assert torch.equal(scores(method, x), found)
    assert not counted
    with torch.no_grad():
        next(method.bank.up.parameters()).add_(1.0)
    with pytest.raises(AttributeError):
        scores(method, x)
    assert counted, "other updates, other features"


# Classifier


def test_without_adaptation_and_gaussians_it_is_ranpac() -> None:
    stream, x = tiny_stream(), images()
    plain, ranpac = duet(encoders="plain", n_random=40, n_gaussian=0), make("ranpac", n_random=40)
    assert isinstance(plain.head, RandomRidge)
    assert torch.equal(plain.head.projection, ranpac.head.projection)
    seen = Stages()
    learn(plain, stream, callback=seen)
    learn(ranpac, stream)
    assert seen.seen == []
    assert float(plain.head.chosen) == float(ranpac.head.chosen)
    assert torch.allclose(scores(plain, x), scores(ranpac, x), atol=1e-5)
    assert plain.features(x).shape == (6, 16)


def test_scores_are_the_ridge_regression_less_the_distance_per_number() -> None:
    stream, x = tiny_stream(), images()
    method = duet(n_random=30, n_gaussian=7)
    learn(method, stream)
    assert isinstance(method.head, RidgeAndGaussians)
    ridge, projection = method.head.ridge, method.head.gaussians.projection.double()
    f, y = [], []
    for i in range(len(stream)):
        rows, labels = learn_task_of(method, stream, i).extract_features(method.features)
        f.append(rows)
        y.append(labels)

    def hidden(features: Tensor) -> Tensor:
        return (20 * F.normalize(features.double(), dim=1) @ ridge.projection.double()).relu()

    h, labels = hidden(torch.cat(f)), torch.cat(y)
    gram = h.T @ h + float(ridge.chosen) * torch.eye(30, dtype=torch.float64)
    weight = torch.linalg.solve(gram, h.T @ F.one_hot(labels).double())
    density = log_densities(torch.cat(f).double() @ projection, labels, method.features(x).double() @ projection)
    apart = scores(method, x) - hidden(method.features(x)) @ weight - 2 / 7 * density
    assert torch.allclose(apart, apart[:, :1].expand_as(apart), atol=1e-4)


def log_densities(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Log-densities (B, C) of rows x (B, K) under the Gaussian of each class of samples z (n, K) with labels y."""
    classes = [z[y == c] for c in y.unique().tolist()]
    scatters = [(own - own.mean(0)).T @ (own - own.mean(0)) for own in classes]
    shared, n = shrunk(torch.stack(scatters).sum(0), len(z) - len(classes)), 2 * len(z) / len(classes)
    covariances = [(n * shared + s) / (n + len(own) - 1) for own, s in zip(classes, scatters, strict=True)]
    gaussians = [MultivariateNormal(own.mean(0), cov) for own, cov in zip(classes, covariances, strict=True)]
    return torch.stack([gaussian.log_prob(x) for gaussian in gaussians], dim=1)


def test_the_order_of_later_tasks_has_no_influence() -> None:
    source, x = tiny_stream().source, images()
    found = []
    for tasks in ([["0", "1"], ["2"], ["3", "4"]], [["0", "1"], ["4", "2", "3"]]):
        stream = TaskStream(source, StreamOptions(tasks=tasks, validation=0))
        method = learn(duet(), stream)
        found.append(scores(method, x)[:, [stream.class_names.index(name) for name in source.class_names]])
    assert torch.allclose(found[0], found[1], atol=1e-5)


def sizes(method: Duet) -> tuple[tuple[int, ...], tuple[int, ...]]:
    assert isinstance(method.head, RidgeAndGaussians)
    return tuple(method.head.ridge.projection.shape), tuple(method.head.gaussians.projection.shape)


def test_random_features_are_bounded() -> None:
    assert sizes(duet()) == ((32, 320), (32, 32))
    assert sizes(duet(encoders="plain")) == ((16, 160), (16, 16))
    assert sizes(duet(n_random=7, n_gaussian=5)) == ((32, 7), (32, 5))
    assert random_width(1536, None, most=4_000) == 4_000


# Options


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("image", {"keep": 0.0}, r"method\.keep must lie in \(0, 1\], got 0\.0"),
        ("image", {"keep": 1.5}, r"method\.keep must lie in \(0, 1\], got 1\.5"),
        ("text", {"keep": 0.5}, r"method\.keep=0\.5 has no effect on texts"),
        ("image", {"layers": ()}, r"method\.layers must name a layer"),
        ("image", {"rank": 0}, r"method\.rank must be at least 1"),
        ("image", {"n_gaussian": 33}, r"method\.n_gaussian must lie in \[0, 32\], the numbers of a feature, got 33"),
        ("image", {"n_gaussian": -1}, r"method\.n_gaussian must lie in \[0, 32\], the numbers of a feature, got -1"),
        ("image", {"encoders": "plain", "rank": 4}, r"method\.rank=4 has no effect with method\.encoders=plain"),
        ("image", {"encoders": "plain", "keep": 0.7}, r"method\.keep=0\.7 has no effect with method\.encoders=plain"),
        ("image", {"encoders": "plain", "layers": (1,)}, r"has no effect with method\.encoders=plain"),
    ],
)
def test_options_without_meaning_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        duet(kind, **options)


# Read-out


def few_digits() -> TaskStream:
    return TaskStream(open_source("digits"), StreamOptions(step=5, limit_per_class=4))


def test_the_default_read_out_is_that_of_the_method_unless_another_is_named() -> None:
    learner = Learner("duet", n_random=20)
    assert learner.spec.readout == learner.method.backbone.readout == "cls+mean"
    named = Learner("duet", backbone=BackboneSpec(readout="cls"), n_random=20)
    assert named.spec.readout == named.method.backbone.readout == "cls"
    other = Learner("ranpac", n_random=20)
    assert other.spec.readout is None
    assert other.method.backbone.readout == "cls"


@pytest.mark.parametrize(("readout", "expected"), [(None, "cls+mean"), ("mean", "mean")])
def test_a_saved_learner_keeps_its_read_out(
    readout: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also does if the method's default is another one later."""
    backbone = BackboneSpec(readout=readout)
    learner = Learner("duet", backbone=backbone, n_random=20, train={"epochs": 1}, precision="fp32")
    learner.learn(few_digits().task(0))
    learner.save(tmp_path / "saved")
    monkeypatch.setattr(Duet, "default_readout", None)
    loaded = Learner.load(tmp_path / "saved")
    assert loaded.method.backbone.readout == expected
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(loaded.scores(x), learner.scores(x))
    assert all(bool(up.any()) for up in ups(loaded.method))
