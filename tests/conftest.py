"""Fixtures that every part of the suite shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ostinato.backbones import Arch, Backbone, Preprocess

# The models here are tiny: a second thread costs more than it gives, and slows down whatever runs beside the suite.
torch.set_num_threads(1)

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
        p.data = torch.randn(p.shape, generator=rng) * (0.3 if p.ndim > 1 else 0.1) + (1.0 if p.ndim == 1 else 0.0)
    return backbone.requires_grad_(False).eval()


def photos(root: Path, classes: dict[str, tuple[int, int, int]], n: int = 6, seed: int = 0) -> Path:
    """An image folder: per class, small JPEGs of a colour with noise."""
    rng = np.random.default_rng(seed)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(0, 25, (40, 48, 3)) + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)
YELLOW, WHITE, CYAN = (230, 220, 40), (240, 240, 240), (40, 220, 220)


@pytest.fixture
def backbone() -> Backbone:
    return random_backbone()


@pytest.fixture
def vit_ti() -> Path:
    if not VIT_TI.exists():
        pytest.skip("the real ViT-Ti weights are not beside this checkout (../shared/weights)")
    return VIT_TI
