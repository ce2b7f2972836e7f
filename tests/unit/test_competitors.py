"""EASE, InfLoRA, SD-LoRA, S-Prompts and HiDe-Prompt: the equations of each by hand."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.backbones import LayerPlan, Tokens
from ostinato.contract.harness import inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import random_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.methods.base import Method
from ostinato.methods.ease import EASE
from ostinato.methods.hide_prompt import HiDePrompt
from ostinato.methods.inflora import InfLoRA
from ostinato.methods.parts.banks import at
from ostinato.methods.s_prompt import SPrompt
from ostinato.methods.sd_lora import SDLoRA
from ostinato.nn.keys import ClusterKeys
from ostinato.nn.projection import Subspace

CPU = torch.device("cpu")
D = 16


def tiny(cls: type[Method], **options: Any) -> Any:
    """An untrained method on an encoder of three layers."""
    torch.manual_seed(3)
    return cls(random_backbone(depth=3), **options).eval()


def begun(method: Any, stream: Any, n_tasks: int) -> Any:
    for i in range(n_tasks):
        method.begin_task(learn_task_of(method, stream, i))
    return method


def moved(parameters: Any, seed: int = 1) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p += 0.1 * torch.randn(p.shape, generator=draw)


@pytest.fixture(scope="module")
def stream():
    return tiny_stream()


@pytest.fixture(scope="module")
def test_images(stream) -> Tensor:
    return inputs_of(stream)


# EASE


def axis(i: int) -> Tensor:
    return torch.eye(D)[i]


def test_ease_maps_an_old_prototype_by_its_similarity_to_new_classes():
    method = tiny(EASE)
    method.task_sizes = torch.tensor([1, 2])
    method.prototypes = torch.zeros(3, 2, D)
    method.prototypes[:, 0] = torch.stack([axis(0), 2 * axis(0), axis(1)])  # cosines 1 and 0 with class 0
    method.prototypes[1:, 1] = torch.stack([axis(2), axis(3)])
    method._map()
    near, far = math.e / (1 + math.e), 1 / (1 + math.e)
    torch.testing.assert_close(method.prototypes[0, 1], near * axis(2) + far * axis(3))
    assert torch.equal(method.prototypes[1:, 1], torch.stack([axis(2), axis(3)]))


def test_ease_maps_under_a_middle_adapter_from_the_classes_of_all_later_tasks():
    method = tiny(EASE)
    method.task_sizes = torch.tensor([1, 1, 1])
    method.prototypes = torch.zeros(3, 3, D)
    method.prototypes[:, 0] = axis(0)  # all equally near
    method.prototypes[1:, 1] = torch.stack([axis(1), axis(2)])
    method.prototypes[2, 2] = axis(3)
    method._map()
    torch.testing.assert_close(method.prototypes[0, 1], (axis(1) + axis(2)) / 2)
    torch.testing.assert_close(method.prototypes[:, 2], axis(3).expand(3, D))


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_ease_scores_with_own_adapters_others_and_the_plain_encoder(stream, test_images, beta):
    method = learn(make("ease", alpha=0.4, beta=beta, rank=4), stream)
    assert isinstance(method, EASE)
    moved([method.prototypes, *method.adapters.up])
    x = test_images[:5]
    with torch.no_grad():
        features = [method.backbone(x, method.adapters.plan(t)) for t in range(3)]
        assert (features[0] - features[1]).abs().max() > 1e-3
        got = scores(method, x)
        for c, i in enumerate(method.task_of_class.tolist()):
            cosines = [torch.cosine_similarity(f, method.prototypes[c, j][None]) for j, f in enumerate(features)]
            want = cosines[i] + 0.4 / 2 * sum(cosines[j] for j in range(3) if j != i)
            if beta:
                want = want + beta * torch.cosine_similarity(method.backbone(x), method.plain_means.means()[c][None])
            torch.testing.assert_close(got[:, c], want, atol=1e-5, rtol=1e-4)


def test_ease_prototypes_are_means_under_old_and_own_adapters(stream):
    method = learn(make("ease", rank=4), stream, 2)
    assert isinstance(method, EASE)
    with torch.no_grad():
        x, y = zip(*learn_task_of(method, stream, 1).eval_batches(), strict=True)
        x, y = torch.cat(x), torch.cat(y)
        for j in range(2):
            want = method.backbone(x[y == 3], method.adapters.plan(j)).mean(0)
            torch.testing.assert_close(method.prototypes[3, j], want, atol=1e-5, rtol=1e-4)


# InfLoRA


def test_leading_directions_of_what_a_basis_leaves():
    space = Subspace(4)
    space.basis = torch.eye(4)[:, :1]
    found = space.leading(torch.diag(torch.tensor([9.0, 2.0, 4.0, 1.0])), 5)
    assert found.abs().tolist() == [[0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_inflora_designs_its_updates_in_what_old_inputs_leave(stream):
    method = tiny(InfLoRA, rank=3, energy=0.9)
    learn(method, stream, 1)
    task = learn_task_of(method, stream, 1)
    method.begin_task(task)
    method._design(task)
    x = torch.cat([x for x, _ in task.eval_batches()])
    tokens = method.backbone.embed(x)
    for layer in range(3):
        block = method.backbone.encoder.blocks[layer]
        rows = block.norm1(method.backbone.run(tokens, method.bank.summed(), stop=layer).h).flatten(0, 1).double()
        m = method.old_inputs[layer].basis.double()
        assert 0 < m.shape[1] < D
        residual = (torch.eye(D) - m @ m.T) @ (rows.T @ rows)
        want = torch.linalg.svd(residual).U[:, :3]
        for name in ("k", "v"):
            a = at(method.bank.down, layer, name)[1].detach().double() * 3**0.5
            torch.testing.assert_close(a @ a.T, torch.eye(3).double(), atol=1e-5, rtol=0)
            torch.testing.assert_close(a.T @ a, want @ want.T, atol=1e-4, rtol=0)
            assert (a @ m).abs().max() < 1e-6


def test_inflora_leaves_the_outputs_of_old_inputs_alone(stream):
    """With all their energy, directions of old inputs get no update at all."""
    method = tiny(InfLoRA, rank=2, energy=1.0)
    learn(method, stream, 1)
    for space in method.old_inputs:  # as if old inputs filled all but four directions
        space.basis = torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0))).Q[:, :12]
    task = learn_task_of(method, stream, 1)
    method.begin_task(task)
    method._design(task)
    moved(part[-1] for part in (at(method.bank.up, i, n) for i, n in method.bank.places))
    edit = method.bank.edit(1, "k", 1)
    old, new = method.old_inputs[1].basis.T, torch.randn(4, D)
    assert (old @ edit.down.T @ edit.up.T).abs().max() < 1e-6
    assert (new @ edit.down.T @ edit.up.T).abs().max() > 1e-3


def test_inflora_keeps_the_share_of_the_energy_of_its_task(stream):
    method = tiny(InfLoRA, energy=0.97, energy_step=0.02)
    for i, wanted in enumerate((0.97, 0.99)):
        task = learn_task_of(method, stream, i)
        method.begin_task(task)
        before = method.old_inputs[0].basis.shape[1]
        method.end_task(task)
        space, h = method.old_inputs[0].basis.double(), method.inputs(task)[0]
        share = (space.T @ h).square().sum() / h.square().sum()
        less = (space[:, :-1].T @ h).square().sum() / h.square().sum()
        assert before < space.shape[1]
        assert less < wanted <= share


def test_a_sum_of_updates_is_that_of_its_parts(stream):
    method = begun(tiny(InfLoRA, rank=2), stream, 3)
    moved(p for i, n in method.bank.places for p in at(method.bank.up, i, n))
    x = inputs_of(stream)[:3]
    changed = deepcopy(method.backbone)
    for layer, block in enumerate(changed.encoder.blocks):
        for part, name in ((1, "k"), (2, "v")):
            a, b = at(method.bank.down, layer, name), at(method.bank.up, layer, name)
            block.attn.qkv.weight[part * D : (part + 1) * D] += sum(b[t].detach() @ a[t] for t in range(3))
    torch.testing.assert_close(method.features(x), changed(x), atol=1e-4, rtol=1e-4)


# SD-LoRA


def test_sd_lora_weighs_old_directions_and_the_new_product():
    method = tiny(SDLoRA, rank=1)
    method.magnitudes = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    down = torch.tensor([[[3.0, 4.0]], [[1.0, 1.0]]])  # |A| = 5
    up = torch.tensor([[[0.0], [2.0]], [[5.0], [0.0]]])  # |B| = 2
    assert method.weights(down, up).tolist() == pytest.approx([2.0 / 10.0, 3.0])
    unit = torch.tensor([[[0.6, 0.8]], [[1.0, 1.0]]]), torch.tensor([[[0.0], [1.0]], [[5.0], [0.0]]])
    assert method.weights(*unit).tolist() == pytest.approx([2.0, 3.0])


def test_sd_lora_adds_normalised_old_updates_and_its_own(stream):
    method = begun(tiny(SDLoRA, rank=2), stream, 2)
    moved(p for i, n in method.bank.places for p in at(method.bank.up, i, n))
    moved([method.magnitudes])
    x, (a0, a1) = inputs_of(stream)[:3], method.magnitudes.tolist()
    changed = deepcopy(method.backbone)
    for layer, block in enumerate(changed.encoder.blocks):
        for part, name in ((0, "q"), (2, "v")):
            a, b = at(method.bank.down, layer, name), at(method.bank.up, layer, name)
            update = a0 * b[0] @ a[0] / (b[0].norm() * a[0].norm()) + a1 * b[1] @ a[1]
            block.attn.qkv.weight[part * D : (part + 1) * D] += update.detach()
    torch.testing.assert_close(method.features(x), changed(x), atol=1e-4, rtol=1e-4)


def test_sd_lora_trains_all_magnitudes_and_the_newest_factors_alone(stream):
    method = begun(tiny(SDLoRA, rank=2), stream, 1)
    moved(p for i, n in method.bank.places for p in at(method.bank.up, i, n))
    moved([method.magnitudes])
    begun_again = learn_task_of(method, stream, 1)
    method.begin_task(begun_again)
    assert method.magnitudes.tolist() == pytest.approx([0.8, 0.8])
    x, y = next(iter(begun_again.eval_batches()))
    method.loss(x, y)["ce"].backward()
    assert method.magnitudes.grad[0].abs() > 0
    for i, name in method.bank.places:
        assert at(method.bank.up, i, name)[0].grad is None
        assert at(method.bank.up, i, name)[1].grad.abs().max() > 0


# S-Prompts


def test_cluster_keys_by_hand():
    keys = ClusterKeys(2, 2)
    for groups in ([(1.0, 0.0), (0.0, 1.0)], [(-1.0, 0.0), (-0.6, -0.8)]):
        keys.begin(2, device=CPU)
        keys.fit(torch.tensor(groups).repeat_interleave(3, 0), torch.zeros(6, dtype=torch.int64), range(2))
    assert sorted(keys.keys[0].tolist()) == [[0.0, 1.0], [1.0, 0.0]]
    got = keys.match(torch.tensor([[4.0, 3.0]]), [2, 2])  # (0.8, 0.6) at L1 distances 0.8 and 1.2, 2.4 and 2.8
    torch.testing.assert_close(got, torch.tensor([[-0.8, -2.4]]))


@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_s_prompt_scores_the_classes_of_the_nearest_task_under_its_prompt(stream, test_images, readout):
    backbone = random_backbone()
    backbone.readout = readout
    method = make("s_prompt", backbone=backbone, length=3)
    assert isinstance(method, SPrompt)
    learn(method, stream, 2)
    x = test_images[:12]
    with torch.no_grad():
        tasks, got = method.infer_task(x), method.scores(x)
        assert (method.task_of_class[got.argmax(1)] == tasks).all()
        for i, t in enumerate(tasks.tolist()):
            tokens = backbone.embed(x[i : i + 1]).h
            h = torch.cat([tokens[:, :1], method.prompts[t][None], tokens[:, 1:]], dim=1)
            h = backbone.run(Tokens(h)).h
            feature = backbone.pool(Tokens(torch.cat([h[:, :1], h[:, 4:]], dim=1)))
            own = method.task_of_class == t
            assert (got[i, ~own] < got[i, own].min() - 1e3).all()
            torch.testing.assert_close(got[i, own], method.head(feature)[0, own], atol=1e-4, rtol=1e-4)


# HiDe-Prompt


def hide(stream: Any, n_tasks: int, **options: Any) -> HiDePrompt:
    method = make("hide_prompt", align={"epochs": 1, "samples": 8}, **options)
    assert isinstance(method, HiDePrompt)
    learn(method, stream, n_tasks)
    return method


def test_hide_prompt_mixes_the_prefixes_of_earlier_tasks_into_those_of_a_new_one(stream):
    method = hide(stream, 2, momentum=0.25, length=2, layers=(1, 3))
    old = [p.detach().clone() for p in method.prompts.e_prompt]
    method.begin_task(learn_task_of(method, stream, 2))
    e = method.prompts.e_prompt[2]
    assert torch.equal(e, old[1])
    moved([e])
    mixed = 0.75 * e + 0.25 * (old[0] + old[1]) / 2
    x = inputs_of(stream)[:2]
    want = method.backbone(x, LayerPlan(method.prompts.edits(mixed[None])))
    torch.testing.assert_close(method._newest_features(x), want)
    kept = mixed.detach().clone()
    with torch.no_grad():
        method.end_task(learn_task_of(method, stream, 2))
    torch.testing.assert_close(method.prompts.e_prompt[2].detach(), kept)
    assert torch.equal(method.prompts.e_prompt[0], old[0])


def test_hide_prompt_keeps_features_apart_from_old_means(stream):
    method = hide(stream, 1, contrast=0.3)
    task = learn_task_of(method, stream, 1)
    method.begin_task(task)
    x, y = next(iter(task.eval_batches()))
    got = method.loss(x, y)
    rows = torch.cat([method.alignment.gaussians.means, method._newest_features(x)])
    assert len(method.alignment.gaussians.means) == 2
    terms = [-((row @ rows.T) / 0.8).log_softmax(0)[i] for i, row in enumerate(rows)]
    torch.testing.assert_close(got["contrast"], 0.3 * torch.stack(terms).mean())
    assert set(hide(stream, 1, contrast=0.0).loss(x, y - 2)) == {"ce"}


def test_hide_prompt_infers_the_task_of_the_likeliest_class_of_plain_features(stream, test_images):
    method = hide(stream, 3)
    with torch.no_grad():
        classes = method.tii_head(method.backbone(test_images)).argmax(1)
        tasks = method.infer_task(test_images)
        assert torch.equal(tasks, method.task_of_class[classes])
        assert len(tasks.unique()) > 1
        got = method.scores(test_images)
        for i in range(0, len(test_images), 7):
            prefixes = method.prompts.under(int(tasks[i]))
            want = method.head(method.backbone(test_images[i : i + 1], LayerPlan(prefixes)))[0]
            torch.testing.assert_close(got[i], want, atol=1e-4, rtol=1e-4)


def test_hide_prompt_trains_the_head_of_tasks_on_gaussians_of_plain_features(stream):
    method = hide(stream, 2)
    found, labels = learn_task_of(method, stream, 1).extract_features(method.backbone)
    want = torch.stack([found[labels == c].mean(0) for c in (2, 3)])
    torch.testing.assert_close(method.tii_alignment.gaussians.means[2:], want, atol=1e-5, rtol=1e-4)
    assert (method.alignment.gaussians.means[2:] - want).abs().max() > 1e-3
    assert not torch.equal(method.tii_head.weight[0], hide(stream, 1).tii_head.weight[0])


@pytest.mark.parametrize(
    ("cls", "options", "says"),
    [
        (EASE, {"alpha": -0.1}, "method.alpha and method.beta"),
        (EASE, {"rank": 0}, "method.rank"),
        (InfLoRA, {"rank": 17}, "method.rank must be at most 16"),
        (InfLoRA, {"energy": 0.0}, "method.energy must lie in"),
        (SDLoRA, {"magnitude": 0.0}, "method.magnitude must be positive"),
        (SPrompt, {"length": 0}, "method.length"),
        (SPrompt, {"clusters": 0}, "method.clusters"),
        (HiDePrompt, {"momentum": 1.0}, "method.momentum must lie in"),
        (HiDePrompt, {"layers": ()}, "method.layers must name"),
        (HiDePrompt, {"layers": (3,)}, "method.layers must name layers in"),
    ],
)
def test_wrong_options_are_refused(cls, options, says):
    with pytest.raises(InputError, match=says):
        tiny(cls, **options)
