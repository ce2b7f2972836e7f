"""Adaptations of all layers, against the same computation without edits, and APER on them."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.backbones import Backbone, Edit, LayerPlan, Tokens
from ostinato.backbones.edits import LINEARS, Affine, Bottleneck
from ostinato.contract.harness import inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import random_backbone, random_text_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.methods.aper import APER
from ostinato.methods.parts.adaptations import DeepPrompts, ScalesAndShifts
from ostinato.methods.simplecil import SimpleCIL
from ostinato.nn.statistics import NearestMeans

CPU = torch.device("cpu")
BACKBONES = {"image": lambda: random_backbone(depth=3), "text": lambda: random_text_backbone(depth=3)}


@pytest.fixture(params=BACKBONES)
def given(request) -> tuple[Backbone, Tokens]:
    backbone = BACKBONES[request.param]().double()
    return backbone, backbone.embed(inputs_of(tiny_stream(request.param))[:4])


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=1e-9, rtol=1e-7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_bottleneck_by_hand():
    edit = Bottleneck(
        torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([0.5, 0.0]),
        torch.tensor([0.0, 10.0]),
    )  # fmt: skip
    got = edit(torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]]))
    assert got.tolist() == [[[3.0, 10.0], [0.0, 16.0]]]


def test_bottlenecks_of_all_tasks_in_one_pass():
    parts = draw(2, 3, 8), draw(2, 8, 3, seed=1), draw(2, 3, seed=2), draw(2, 8, seed=3)
    h = draw(2, 4, 5, 8, seed=4)
    got = Bottleneck(*(part[:, None] for part in parts))(h)
    for t in range(2):
        close(got[t], Bottleneck(*(part[t] for part in parts))(h[t]))


def test_the_hidden_numbers_of_a_bottleneck_are_dropped_at_random():
    edit = Bottleneck(torch.eye(8), torch.eye(8), torch.zeros(8), torch.zeros(8), dropout=0.5)
    out = edit(torch.ones(1, 200, 8))
    assert set(out.unique().tolist()) == {0.0, 2.0}


def test_prompts_of_all_layers_enter_and_leave_every_layer(given):
    backbone, tokens = given
    prompts = DeepPrompts(backbone, 2).double()
    prompts.begin_task(CPU)
    prompts.double()
    got = backbone.run(tokens, prompts.plan(-1))
    want = tokens
    for layer in range(3):
        inside = backbone.run(want.insert(prompts.prompts[-1][layer][None], at=1), start=layer, stop=layer + 1)
        want = inside.without(1, 2)
    seen = slice(None) if tokens.mask is None else tokens.mask
    close(got.h[seen], want.h[seen])
    assert (got.h - backbone.run(tokens).h)[seen].abs().max() > 1e-3


def test_scales_and_shifts_are_those_of_weights_and_norms(given):
    backbone, tokens = given
    edits = ScalesAndShifts(backbone.arch)
    edits.begin_task(CPU)
    edits.double()
    with torch.no_grad():
        edits.scales[0] += 0.3 * draw(*edits.scales[0].shape, seed=1)
        edits.shifts[0] += 0.3 * draw(*edits.shifts[0].shape, seed=2)
    changed = deepcopy(backbone)
    for layer, block in enumerate(changed.encoder.blocks):
        scales, shifts = (
            dict(zip((*LINEARS, "norm1", "norm2"), part[0][layer].detach().split(edits.sizes), strict=True))
            for part in (edits.scales, edits.shifts)
        )
        maps = {"proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
        gamma, beta = (torch.cat([part[name] for name in "qkv"]) for part in (scales, shifts))
        for module, g, b in [
            (block.attn.qkv, gamma, beta),
            *((module, scales[name], shifts[name]) for name, module in maps.items()),
            (block.norm1, scales["norm1"], shifts["norm1"]),
            (block.norm2, scales["norm2"], shifts["norm2"]),
        ]:
            module.weight.mul_(g[:, None] if module.weight.ndim == 2 else g)
            module.bias.mul_(g).add_(b)
    close(backbone.features(tokens, edits.plan(0)), changed.features(tokens))


def test_a_fingerprint_depends_on_every_part_of_an_adapter_and_of_norms():
    def plan(**changed: float) -> bytes:
        names = ("down", "up", "down_bias", "up_bias")
        shapes = ((1, 4), (4, 1), (1,), (4,))
        parts = {n: torch.full(s, changed.get(n, 0.0)) for n, s in zip(names, shapes, strict=True)}
        norms = {n: Affine(torch.full((4,), changed.get(n, 1.0)), torch.zeros(4)) for n in ("norm1", "norm2")}
        return LayerPlan({0: Edit(adapter=Bottleneck(**parts), **norms)}).fingerprint()

    assert plan() == plan()
    assert len({plan(), *(plan(**{n: 2.0}) for n in ("down", "up", "down_bias", "up_bias", "norm1", "norm2"))}) == 7


def test_nearest_means_by_hand():
    head = NearestMeans(2)
    head.add(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 1]), 2)
    head.add(torch.tensor([[1.0, 1.0]]), torch.tensor([2]), 1)
    torch.testing.assert_close(head(torch.tensor([[5.0, 0.0]])), torch.tensor([[1.0, 0.0, 0.5**0.5]]))


# APER


def aper(**options: Any) -> APER:
    method = make("aper", **options)
    assert isinstance(method, APER)
    return method


@pytest.mark.parametrize("adapt", ["adapter", "vpt", "ssf"])
def test_aper_compares_joined_features_with_their_class_means(adapt):
    stream = tiny_stream()
    method = aper(adapt=adapt)
    learn(method, stream, 1)
    plan = method.bank.plan(0)
    kept = {name: p.detach().clone() for name, p in method.bank.named_parameters()}
    learn_all = [learn_task_of(method, stream, i) for i in range(2)]
    method.begin_task(learn_all[1])
    assert not list(method.stages(learn_all[1]))
    method.end_task(learn_all[1])
    assert all(torch.equal(p, kept[name]) for name, p in method.bank.named_parameters())

    def joined(x: Tensor) -> Tensor:
        return torch.cat([method.backbone(x), method.backbone(x, plan)], dim=1)

    with torch.no_grad():
        rows, labels = zip(*((joined(x), y) for task in learn_all for x, y in task.eval_batches()), strict=True)
        rows, labels, test = torch.cat(rows), torch.cat(labels), inputs_of(stream, 2)
        means = torch.stack([rows[labels == c].mean(0) for c in range(4)])
        want = torch.cosine_similarity(joined(test)[:, None], means[None], dim=-1)
        assert (joined(test)[:, 16:] - joined(test)[:, :16]).abs().max() > 1e-3
    torch.testing.assert_close(scores(method, test), want, atol=1e-5, rtol=1e-4)


def test_aper_without_anything_to_adapt_is_nearest_mean():
    """A first task of one class trains nothing, and untrained adapters add nothing."""
    stream = tiny_stream(n_classes=3, step=1)
    test = inputs_of(stream)
    method, plain = learn(aper(), stream), learn(SimpleCIL(random_backbone()), stream)
    torch.testing.assert_close(scores(method, test), scores(plain, test), atol=1e-5, rtol=1e-5)


def test_aper_adds_samples_of_known_classes_to_its_means():
    stream = tiny_stream(n_classes=2)
    method, test = learn(aper(), stream), inputs_of(stream)
    before, counts = scores(method, test), method.head.counts.clone()
    with torch.no_grad():
        method.refine(learn_task_of(method, stream, 0))  # the same samples again: the same means
    assert torch.equal(method.head.counts, 2 * counts)
    torch.testing.assert_close(scores(method, test), before)
    method.relabel(torch.tensor([0, 0]))
    assert scores(method, test).shape == (len(test), 1)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"adapt": {"rank": 0}}, "method.adapt.rank"),
        ({"adapt": {"dropout": 1.0}}, "method.adapt.dropout"),
        ({"adapt": {"name": "vpt", "rank": 4}}, "method.adapt.rank has no effect with method.adapt=vpt"),
        ({"adapt": "prefix"}, "method.adapt must be one of"),
    ],
)
def test_wrong_options_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        APER(random_backbone(depth=1), **options)
