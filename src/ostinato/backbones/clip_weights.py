"""Pre-trained CLIP models of the transformers library, converted to :class:`ClipBackbone`.

Parity with transformers' forward pass is tested in ``tests/golden/test_clip_parity.py``.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ostinato.backbones.clip import ClipBackbone, TextTower
from ostinato.backbones.encoder import Arch
from ostinato.backbones.hub import (
    LayerSizes,
    ModelFile,
    check_tokenizer,
    checked,
    convert_layers,
    read_config,
    read_json,
    read_state,
    read_tokenizer,
)
from ostinato.backbones.tensors import Taken
from ostinato.backbones.vision import Preprocess

KIND = "clip"
"""The ``model_type`` of these models."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of OpenAI's weights, for models without one."""

QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")


class TextSizes(LayerSizes):
    """``text_config``."""

    hidden_size: int = Field(512, ge=1, le=2**16)
    intermediate_size: int = Field(2048, ge=1, le=2**20)
    num_attention_heads: int = Field(8, ge=1, le=2**16)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = Field(1e-5, ge=0, le=1)
    vocab_size: int = Field(49408, ge=1, le=2**26)
    max_position_embeddings: int = Field(77, ge=3, le=2**20)


class ImageSizes(LayerSizes):
    """``vision_config``."""

    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = Field(1e-5, ge=0, le=1)
    image_size: int = Field(224, ge=1, le=2**14)
    patch_size: int = Field(32, ge=1, le=2**14)


class _Sizes(ModelFile):
    """``config.json``."""

    projection_dim: int = Field(512, ge=1, le=2**16)
    tokenizer_class: str | None = None
    # Old files repeat both as *_dict, which transformers prefers.
    text_config: dict[str, Any] | None = None
    text_config_dict: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    vision_config_dict: dict[str, Any] | None = None

    def text(self) -> dict[str, Any]:
        return (self.text_config if self.text_config_dict is None else self.text_config_dict) or {}

    def vision(self) -> dict[str, Any]:
        return (self.vision_config if self.vision_config_dict is None else self.vision_config_dict) or {}


_Channels = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
_Scales = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class _Pixels(ModelFile):
    """``preprocessor_config.json``."""

    image_mean: _Channels = Field(list(MEAN))
    image_std: _Scales = Field(list(STD))


def clip_backbone(source: str) -> tuple[ClipBackbone, dict[str, Tensor]]:
    """Make a CLIP backbone without weights, and its state dict, from a folder or a name on the Hugging Face hub.

    Raises:
        InputError: if there is no such model, or it has a part that our encoder does not compute.
    """
    config = checked(_Sizes, read_config(source), source, "config.json")
    image = checked(ImageSizes, config.vision(), source, "config.json, vision_config")
    text = checked(TextSizes, config.text(), source, "config.json, text_config")
    of_image, of_text = image.arch(source), text.arch(source, causal=True)
    tokenizer, _ = read_tokenizer(source, KIND, config.tokenizer_class)
    check_tokenizer(source, tokenizer, text.vocab_size)
    name = "preprocessor_config.json"
    pixels = checked(_Pixels, read_json(source, name, "preprocessing") or {}, source, name)
    # Converted before the model is built, in no more memory than the file takes: wrong sizes fail here.
    state = convert_clip(read_state(source), (of_image, image), (of_text, text), config.projection_dim)
    tower = TextTower(
        of_text,
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
        joint=config.projection_dim,
        tokenizer=tokenizer,
    )
    mean, std = pixels.image_mean, pixels.image_std
    backbone = ClipBackbone(
        of_image,
        patch=image.patch_size,
        preprocess=Preprocess(image.image_size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])),
        text=tower,
        joint=config.projection_dim,
    )
    return backbone, state


def convert_clip(
    take: Taken, images: tuple[Arch, ImageSizes], texts: tuple[Arch, TextSizes], joint: int
) -> dict[str, Tensor]:
    """Convert the tensors of a CLIP model to our names, in fp32; each encoder comes with the sizes of its tables."""
    image, text = "vision_model", "text_model"
    dim, words, patch = images[0].dim, texts[0].dim, images[1].patch_size
    places = 1 + (images[1].image_size // patch) ** 2
    out = {
        "cls_token": take(f"{image}.embeddings.class_embedding", dim)[None, None],
        "pos_embed": take(f"{image}.embeddings.position_embedding.weight", places, dim)[None],
        "patch_embed.weight": take(f"{image}.embeddings.patch_embedding.weight", dim, 3, patch, patch),
        "patch_embed.bias": torch.zeros(dim),  # it has none
        "projection.weight": take("visual_projection.weight", joint, dim),
        "scale": take("logit_scale").exp(),
        "text.words.weight": take(f"{text}.embeddings.token_embedding.weight", texts[1].vocab_size, words),
        "text.pos_embed": take(f"{text}.embeddings.position_embedding.weight", texts[1].max_position_embeddings, words),
        "text.projection.weight": take("text_projection.weight", joint, words),
    }
    norms = {
        "norm_pre": (f"{image}.pre_layrnorm", dim),  # as it is spelt there
        "encoder.norm": (f"{image}.post_layernorm", dim),
        "text.encoder.norm": (f"{text}.final_layer_norm", words),
    }
    for ours, (theirs, width) in norms.items():
        out |= {f"{ours}.{kind}": take(f"{theirs}.{kind}", width) for kind in ("weight", "bias")}
    for theirs, ours, arch in ((image, "", images[0]), (text, "text.", texts[0])):
        parts = {
            "attn.proj": ("self_attn.out_proj", arch.dim, arch.dim),
            "norm1": ("layer_norm1", arch.dim, 0),
            "mlp.fc1": ("mlp.fc1", arch.mlp_dim, arch.dim),
            "mlp.fc2": ("mlp.fc2", arch.dim, arch.mlp_dim),
            "norm2": ("layer_norm2", arch.dim, 0),
        }
        layers = (f"{theirs}.encoder.layers", f"{ours}encoder.blocks", arch.depth, arch.dim)
        out |= convert_layers(take, *layers, QKV, parts)
    return out
