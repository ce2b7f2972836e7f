"""Pre-trained CLIP models of the transformers library, converted to :class:`ClipBackbone`.

Parity with its own forward pass is tested in ``tests/golden/test_clip_parity.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ostinato.backbones.clip import ClipBackbone, TextTower
from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.hub import beside, convert_layers, read_config, read_state, read_tokenizer
from ostinato.backbones.vision import Preprocess
from ostinato.errors import InputError

KIND = "clip"
"""The ``model_type`` of these models."""

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of OpenAI's weights, for models that do not say theirs."""

QKV = tuple(f"self_attn.{name}_proj" for name in "qkv")
PARTS = {
    "attn.proj": "self_attn.out_proj",
    "norm1": "layer_norm1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "norm2": "layer_norm2",
}
"""Parts of a layer, ours and theirs."""


def clip_backbone(source: str) -> tuple[ClipBackbone, dict[str, Tensor]]:
    """A CLIP backbone without weights, and the weights under our names.

    Args:
        source: a folder with ``config.json``, weights and a tokenizer, or a name on the Hugging Face hub.

    Returns:
        The backbone in fp32, and its state dict.

    Raises:
        InputError: if there is no such model, or it has a part that our encoder does not compute.
    """
    config = read_config(source)
    image, text = config.vision_config, config.text_config
    tokenizer, _ = read_tokenizer(source)
    pixels = beside(source, "preprocessor_config.json")
    tower = TextTower(
        _arch(text, source, causal=True),
        vocabulary=text.vocab_size,
        positions=text.max_position_embeddings,
        joint=config.projection_dim,
        tokenizer=tokenizer,
    )
    backbone = ClipBackbone(
        _arch(image, source),
        patch=image.patch_size,
        preprocess=Preprocess(
            image.image_size, tuple(pixels.get("image_mean", MEAN)), tuple(pixels.get("image_std", STD))
        ),
        text=tower,
        joint=config.projection_dim,
    )
    return backbone, convert_clip(read_state(source), backbone)


def _arch(config: Any, source: str, *, causal: bool = False) -> Arch:
    """Sizes of one of the two encoders.

    Raises:
        InputError: if it has an activation that our encoder does not compute.
    """
    if config.hidden_act not in ACTIVATIONS:
        raise InputError(f"backbone: {source!r} has the activation {config.hidden_act!r}, unknown here.")
    return Arch(
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_dim=config.intermediate_size,
        eps=config.layer_norm_eps,
        act=config.hidden_act,
        causal=causal,
    )


def convert_clip(state: Mapping[str, Tensor], backbone: ClipBackbone) -> dict[str, Tensor]:
    """Our names for the tensors of a CLIP model.

    Args:
        state: names of transformers to fp32 tensors.
        backbone: the target.

    Returns:
        fp32 tensors under our names.
    """
    image, text = "vision_model", "text_model"
    places = state[f"{image}.embeddings.position_embedding.weight"]
    out = {
        "cls_token": state[f"{image}.embeddings.class_embedding"][None, None],
        "pos_embed": places[None],
        "patch_embed.weight": state[f"{image}.embeddings.patch_embedding.weight"],
        "patch_embed.bias": torch.zeros(backbone.dim),  # it has none
        "projection.weight": state["visual_projection.weight"],
        "scale": state["logit_scale"].exp(),
        "text.words.weight": state[f"{text}.embeddings.token_embedding.weight"],
        "text.pos_embed": state[f"{text}.embeddings.position_embedding.weight"],
        "text.projection.weight": state["text_projection.weight"],
    }
    norms = {
        "norm_pre": f"{image}.pre_layrnorm",  # as it is spelt there
        "encoder.norm": f"{image}.post_layernorm",
        "text.encoder.norm": f"{text}.final_layer_norm",
    }
    for ours, theirs in norms.items():
        out |= {f"{ours}.{kind}": state[f"{theirs}.{kind}"] for kind in ("weight", "bias")}
    for theirs, ours, arch in ((image, "", backbone.arch), (text, "text.", backbone.text.arch)):
        out |= convert_layers(state, f"{theirs}.encoder.layers", f"{ours}encoder.blocks", arch.depth, QKV, PARTS)
    return out
