"""Joint training: what each scope trains, where it starts, and what a restart forgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from ostinato.backbones import Edit, LayerPlan
from ostinato.contract.harness import SETTINGS, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import tiny_stream
from ostinato.errors import InputError
from ostinato.learner import Learner
from ostinato.methods.joint import MAPS
from ostinato.streams import StreamOptions, TaskStream, open_source
from ostinato.training.loop import learn_task

WHAT = {
    "head": {"head"},
    "lora": {"head", "bank"},
    "full": {"head", "backbone"},
}
"""Parts that a scope trains."""


def taught(scope, n=2, **options):
    method = make("joint", scope=scope, **options)
    return method, learn(method, tiny_stream("image"), upto=n)


@pytest.mark.parametrize("scope", WHAT)
def test_a_scope_trains_its_parts_and_nothing_else(scope):
    method = make("joint", scope=scope)
    learn(method, tiny_stream("image"), upto=1)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    learn_task(method, learn_task_of(method, tiny_stream("image"), 1), SETTINGS)
    moved = {k.split(".")[0] for k, v in method.state_dict().items() if k in before and not torch.equal(v, before[k])}
    assert moved - {"task_sizes"} == WHAT[scope]


def test_all_layers_have_one_low_rank_update_of_each_map_for_all_tasks():
    method, _ = taught("lora", rank=3)
    depth, dim = method.backbone.arch.depth, method.backbone.dim
    trained = {k for k, p in method.named_parameters() if p.requires_grad and k.startswith("bank.")}
    assert trained == {f"bank.{f}.{i}.{m}.0" for f in ("down", "up") for i in range(depth) for m in MAPS}
    assert sum(p.numel() for k, p in method.named_parameters() if k in trained) == depth * 4 * 2 * 3 * dim
    assert all(bool(method.bank.up[str(i)][m][0].any()) for i in range(depth) for m in MAPS), "each was trained"


def test_the_layers_of_updates_may_be_chosen():
    method, _ = taught("lora", rank=2, layers=(5, 3))
    assert {k.split(".")[2] for k in method.state_dict() if k.startswith("bank.")} == {"3", "5"}
    x, _ = next(learn_task_of(method, tiny_stream("image"), 0).eval_batches())
    plan = LayerPlan({i: Edit(linear=maps) for i, maps in method.bank.edits(0).items()})
    torch.testing.assert_close(method.features(x), method.backbone(x, plan))
    assert not torch.allclose(method.features(x), method.query(x), atol=1e-3)
    with pytest.raises(InputError, match=r"method\.layers must name a layer"):
        make("joint", scope="lora", layers=())


def test_training_with_updates_begins_at_the_pretrained_features():
    method = make("joint", scope="lora", rank=2)
    method.begin_task(learn_task_of(method, tiny_stream("image"), 0))
    x, _ = next(learn_task_of(method, tiny_stream("image"), 0).eval_batches())
    torch.testing.assert_close(method.features(x), method.query(x))
    with torch.no_grad():
        method.bank.up["0"]["proj"][0].normal_()
    assert not torch.allclose(method.features(x), method.query(x), atol=1e-3)


@pytest.mark.parametrize(("scope", "classifier"), [("head", "cosine"), *((scope, "linear") for scope in WHAT)])
def test_a_restart_equals_learning_all_tasks_at_once(scope, classifier):
    """What was learned before leaves no trace: only the draws differ, so that they are made the same here."""
    stream = tiny_stream("image")
    method, fresh = (make("joint", scope=scope, classifier=classifier, restart=True) for _ in range(2))
    learn(method, stream, upto=1)
    for one in (method, fresh):
        if one is fresh:  # the tasks before are begun, and nothing is learned of them
            one.begin_task(learn_task_of(one, stream, 0))
        learn_task(one, learn_task_of(one, stream, 1), SETTINGS)
    x, _ = next(learn_task_of(method, stream, 1).eval_batches())
    assert torch.equal(scores(method, x), scores(fresh, x))
    on, _ = taught(scope, classifier=classifier)
    assert not torch.equal(scores(on, x), scores(fresh, x)), "without a restart it goes on from what was learned"


@pytest.mark.parametrize("restart", [False, True])
def test_rows_of_a_cosine_classifier_start_at_the_class_means(restart):
    """Rows of earlier tasks go on from what was learned, without a restart."""
    stream = tiny_stream("image")
    method = make("joint", classifier="cosine", restart=restart)
    learn(method, stream, upto=1)
    learned = method.head.weight[0].clone()
    task = learn_task_of(method, stream, 1)
    method.begin_task(task)
    method.stages(task)[0].prepare()
    features, labels = task.extract_features(method.query)
    means = torch.stack([F.normalize(features[labels == c].mean(0), dim=0) for c in range(int(labels.max()) + 1)])
    old = len(learned)
    torch.testing.assert_close(method.head.weight[1], means[old:])
    torch.testing.assert_close(method.head.weight[0], means[:old] if restart else learned)
    assert not torch.allclose(learned, means[:old], atol=1e-4), "the first task was trained"
    x, _ = next(task.eval_batches())
    z = 20 * F.normalize(method.query(x), dim=-1) @ F.normalize(method.head.weight.joined(), dim=-1).T
    if restart:
        torch.testing.assert_close(scores(method, x), z)


@pytest.mark.parametrize("scope", ["head", "full"])
@pytest.mark.parametrize("option", [{"rank": 4}, {"scale": 2.0}])
def test_options_of_updates_have_no_effect_without_them(scope, option):
    name = next(iter(option))
    with pytest.raises(InputError, match=rf"method\.{name}=.* has no effect with method\.scope={scope}.*scope=lora"):
        make("joint", scope=scope, **option)


@pytest.mark.parametrize("option", [{"rank": 0}, {"scale": 0.0}])
def test_updates_have_a_rank_and_a_scale(option):
    with pytest.raises(InputError, match=rf"method\.{next(iter(option))} must be"):
        make("joint", scope="lora", **option)


@pytest.mark.parametrize("scope", WHAT)
def test_what_was_trained_is_saved_and_loaded(scope, tmp_path):
    stream = TaskStream(open_source("digits"), StreamOptions(tasks=[["0", "1"]], limit_per_class=4))
    learner = Learner("joint", precision="fp32", train={"epochs": 1, "lr": 0.05}, scope=scope)
    learner.learn(stream.task(0))
    learner.save(tmp_path / "a")
    again = Learner.load(tmp_path / "a")
    x = torch.stack([stream.test(0).with_transform(learner.eval_transform)[i][0] for i in range(6)])
    assert torch.equal(again.scores(x), learner.scores(x))
    held = {k.split(".")[0] for k in learner.method.learned_state()}
    assert held == WHAT[scope] | {"task_sizes"}


def test_a_factor_on_the_rate_of_a_frozen_backbone_is_refused():
    train = {"backbone_lr_factor": 0.1}
    with pytest.raises(InputError, match=r"train\.backbone_lr_factor has no effect with joint"):
        Learner("joint", train=train)
    assert Learner("joint", train=train, scope="full").settings.overrides == train


def test_the_backbone_moves_by_its_own_rate():
    """In one step of plain SGD a tensor moves in proportion to its rate."""

    def moves(**more):
        method = make("joint", scope="full")
        before = {k: v.clone() for k, v in method.named_parameters()}
        recipe = {"epochs": 1, "batch_size": 64, "momentum": 0.0, "schedule": "constant", "lr": 0.1}
        stream = tiny_stream("image")
        learn(method, stream, upto=1, settings=replace(SETTINGS, overrides=recipe | more))
        return {k: (v - before[k]).abs().max().item() for k, v in method.named_parameters() if k in before}

    plain, slow = moves(), moves(backbone_lr_factor=0.125)
    assert plain["backbone.patch_embed.weight"] > 0
    for name in plain:
        assert slow[name] == pytest.approx(0.125 * plain[name], rel=1e-3, abs=1e-7), name
