"""Shared defaults and bounds."""

DEFAULT_BACKBONE = "vit_mini_patch8_32.glyphs"
"""Bundled small ViT, pre-trained on rendered glyphs by ``scripts/pretrain_glyphs.py``."""

PHOTO_BACKBONES = (
    "vit_small_patch16_224.augreg_in21k",
    "vit_base_patch16_224.augreg_in21k",
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
)
"""ViTs pre-trained on photos: a run on photos that names no backbone takes the first one on this machine, or downloads
the first one, of 120 MB."""

DEFAULT_METHOD = "duet"
"""Method of a run that names none."""

LARGEST_SIDE = 4096
"""Largest side of an input in pixels: 65,536 patches of 16."""
