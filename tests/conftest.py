"""Fixtures that every part of the suite shares."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ostinato.backbones import Arch, Backbone, Preprocess

SHARED = Path(__file__).resolve().parents[2] / "shared"
VIT_TI = SHARED / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
VIT_TI_NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def random_backbone(depth: int = 12, dim: int = 16, seed: int = 0) -> Backbone:
    """A tiny frozen ViT with random weights that are large enough for every path to matter."""
    backbone = Backbone(
        Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim),
        patch=4,
        preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3),
    )
    rng = torch.Generator().manual_seed(seed)
    for p in backbone.parameters():
        p.data = torch.randn(p.shape, generator=rng) * (0.3 if p.ndim > 1 else 0.1) + (
            1.0 if p.ndim == 1 else 0.0
        )
    return backbone.requires_grad_(False).eval()


@pytest.fixture
def backbone() -> Backbone:
    return random_backbone()


@pytest.fixture
def vit_ti() -> Path:
    if not VIT_TI.exists():
        pytest.skip("the real ViT-Ti weights are not beside this checkout (../shared/weights)")
    return VIT_TI
