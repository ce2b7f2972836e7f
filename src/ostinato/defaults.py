"""Shared defaults and bounds."""

DEFAULT_BACKBONE = "vit_mini_patch8_32.glyphs"
"""Bundled small ViT, pre-trained on rendered glyphs by ``scripts/pretrain_glyphs.py``."""

DEFAULT_METHOD = "duet"
"""Method of a run that names none."""

LARGEST_SIDE = 4096
"""Largest side of an input in pixels: 65,536 patches of 16."""
