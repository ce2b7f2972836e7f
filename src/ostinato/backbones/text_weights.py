"""Pre-trained BERT-like encoders of the transformers library, converted to :class:`TextBackbone`.

transformers supplies architectures' names, weights and tokenizers; the transformer that runs is ours. Parity with its
own forward pass is tested in ``tests/golden/test_transformers_parity.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.hub import beside, convert_layers, read_config, read_state, read_tokenizer
from ostinato.backbones.text import TextBackbone, Tokenization
from ostinato.errors import InputError

KINDS = ("bert", "roberta", "xlm-roberta")
"""Kinds of model (``model_type``) whose layers our encoder computes."""

LENGTH = 256
"""Most tokens of a text where the weights do not say: what the literature on text streams uses."""

_POOLING = "1_Pooling/config.json"
_LIMITS = "sentence_bert_config.json"

QKV = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))
PARTS = {
    "attn.proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm2": "output.LayerNorm",
}
"""Parts of a layer, ours and theirs."""


def text_backbone(source: str, length: int | None = None) -> tuple[TextBackbone, dict[str, Tensor]]:
    """A text backbone without weights, and the weights under our names.

    The read-out is the model's own: what the folder of a sentence encoder says, the first token otherwise.

    Args:
        source: a folder with ``config.json``, weights and a tokenizer, or a name on the Hugging Face hub.
        length: most tokens of a text; None for what a sentence encoder's folder says, else 256 or what fits.

    Returns:
        The backbone in fp32, and its state dict.

    Raises:
        InputError: if there is no such model, or it has a part that our encoder does not compute.
    """
    config = read_config(source)
    arch = _arch(config, source)
    # RoBERTa counts positions from behind the number of its padding token.
    first = 0 if config.model_type == "bert" else config.pad_token_id + 1
    most = config.max_position_embeddings - first
    rules, pad = read_tokenizer(source)
    pad = config.pad_token_id if pad is None else pad
    state = read_state(source, add_pooling_layer=False)
    limit = beside(source, _LIMITS).get("max_seq_length", LENGTH)
    backbone = TextBackbone(
        arch,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        tokenization=Tokenization(rules, min(limit, most) if length is None else length, pad),
        first_position=first,
        readout=_readout(source),
    )
    return backbone, convert_bert(state, arch)


def _readout(source: str) -> str:
    pooling = beside(source, _POOLING)
    modes = [key.removeprefix("pooling_mode_") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    known = {"mean_tokens": "mean", "cls_token": "cls"}
    if len(modes) > 1 or any(mode not in known for mode in modes):
        raise InputError(
            f"backbone: {source!r} pools by {', '.join(modes)}; only mean_tokens or cls_token is computed."
        )
    return known[modes[0]] if modes else "cls"


def _arch(config: Any, source: str) -> Arch:
    """Sizes of a transformers model.

    Raises:
        InputError: if it has a part that our encoder does not compute.
    """
    if config.model_type not in KINDS:
        raise InputError(
            f"backbone: {source!r} is a {config.model_type}; of text encoders, {', '.join(KINDS)} can run."
        )
    unsupported = {
        "relative positions": getattr(config, "position_embedding_type", "absolute") not in ("absolute", None),
        "a decoder": bool(getattr(config, "is_decoder", False)),
        f"the activation {config.hidden_act!r}": config.hidden_act not in ACTIVATIONS,
    }
    if found := [what for what, present in unsupported.items() if present]:
        raise InputError(f"backbone: {source!r} has {', '.join(found)}, which our encoder does not compute.")
    return Arch(
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        mlp_dim=config.intermediate_size,
        eps=config.layer_norm_eps,
        act=config.hidden_act,
        norm="post",
    )


def convert_bert(state: Mapping[str, Tensor], arch: Arch) -> dict[str, Tensor]:
    """Our names for the tensors of a BERT-like model; its pooler and heads are left out.

    Args:
        state: names of transformers to tensors.
        arch: sizes of the target.

    Returns:
        fp32 tensors under our names.
    """
    state = {k.removeprefix("bert.").removeprefix("roberta."): v.float() for k, v in state.items()}
    out = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "pos_embed": state["embeddings.position_embeddings.weight"],
        "segment": state["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": state["embeddings.LayerNorm.weight"],
        "norm.bias": state["embeddings.LayerNorm.bias"],
    }
    return out | convert_layers(state, "encoder.layer", "encoder.blocks", arch.depth, QKV, PARTS)
