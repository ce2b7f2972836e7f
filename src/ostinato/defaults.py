"""Defaults and bounds that several parts share."""

DEFAULT_BACKBONE = "vit_mini_patch8_32.glyphs"
"""The small ViT in the package, pre-trained on rendered glyphs by ``scripts/pretrain_glyphs.py``."""

LARGEST_SIDE = 4096
"""Most pixels of the side of an input: 65,536 patches of 16, far beyond what is trained."""
