"""What the benchmarks compare computes the same on both sides, and the arithmetic is counted right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks import cases, limits
from benchmarks.cases import CASES, CLASSES, Case, Images, taught
from ostinato.backbones import Arch
from ostinato.contract.tiny_models import random_backbone


def method_of(case: Case) -> Any:
    method = taught(case, random_backbone(), 3, learning=case.training)
    for p in method.parameters():
        if p.requires_grad:
            p.data += 0.1 * torch.randn_like(p)
    return method


@pytest.mark.parametrize("case", [c for c in CASES if not c.training], ids=lambda c: c.name)
def test_both_sides_score_the_same(case: Case):
    method = method_of(case)
    x, y = Images(20, 8, range(15)).batch(20, method.device)
    method.eval()
    with torch.no_grad():
        plain, ours = case.reference(method, x, y), method.scores(x)
        again = method.scores(x)  # with everything looked up that can be
    scale = plain.abs().max()
    assert (ours - plain).abs().max() <= 1e-5 * scale
    assert (again - plain).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("case", [c for c in CASES if c.training and not c.known], ids=lambda c: c.name)
def test_both_sides_have_the_same_loss_and_gradients(case: Case):
    method = method_of(case)
    other = copy.deepcopy(method)
    x, y = Images(10, 8, range(2 * CLASSES, 3 * CLASSES)).batch(10, method.device)
    method.train()
    torch.manual_seed(3)
    ours = torch.stack(list(method.loss(x, y).values())).sum()
    torch.manual_seed(3)
    plain = case.reference(other, x, y)
    assert torch.allclose(ours, plain, rtol=1e-5)
    ours.backward()
    plain.backward()
    reached = 0
    for (name, p), q in zip(method.named_parameters(), other.parameters(), strict=True):
        if q.grad is not None and p.grad is not None:
            reached += 1
            assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-5 * float(q.grad.abs().max())), name
    assert reached >= 3


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_case_runs_to_its_figure(case: Case, monkeypatch):
    monkeypatch.setitem(cases.ARCHS, "tiny", Arch(dim=24, depth=12, heads=2, mlp_dim=24))
    monkeypatch.setattr(cases, "SIDE", 32)
    more: dict[str, Any] = {"with_reference": True, "shapes": ((32, 32, 32),)}
    took = cases.measure(case, "tiny", batch=2, rounds=1, device=torch.device("cpu"), dtype=torch.float32, **more)
    assert took.ours > 0
    assert took.reference > 0


@pytest.mark.usefixtures("counts_attention")
def test_a_forward_pass_is_counted_as_torch_counts_it():
    from torch.utils.flop_counter import FlopCounterMode

    arch = Arch(dim=32, depth=3, heads=2, mlp_dim=128)
    backbone = cases.VisionBackbone(arch, patch=4, preprocess=cases.Preprocess(16, (0.5,) * 3, (0.5,) * 3))
    x = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(x)
    assert 2 * limits.forward_flops(arch, 17, patch_inputs=48) == counter.get_total_flops()
