"""Pre-trained BERT-like encoders of the transformers library, converted to :class:`TextBackbone`.

transformers supplies architectures' names, weights and tokenizers; the transformer that runs is ours. Parity with its
own forward pass is tested in ``tests/golden/test_transformers_parity.py``.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.hub import (
    check_tokenizer,
    checked,
    convert_layers,
    read_config,
    read_json,
    read_state,
    read_tokenizer,
)
from ostinato.backbones.tensors import Taken
from ostinato.backbones.text import TextBackbone, Tokenization
from ostinato.errors import InputError
from ostinato.quoting import quoted

KINDS = ("bert", "roberta", "xlm-roberta")
"""Kinds of model (``model_type``) whose layers our encoder computes."""

LENGTH = 256
"""Most tokens of a text where the weights do not say: what the literature on text streams uses."""

_POOLING = "1_Pooling/config.json"
_LIMITS = "sentence_bert_config.json"

QKV = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))


class Sizes(BaseModel):
    """What of ``config.json`` decides what is computed, with the defaults of transformers."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    vocab_size: int = Field(30522, ge=1, le=2**26)
    hidden_size: int = Field(768, ge=1, le=2**16)
    num_hidden_layers: int = Field(12, ge=1, le=2**10)
    num_attention_heads: int = Field(12, ge=1, le=2**16)
    intermediate_size: int = Field(3072, ge=1, le=2**20)
    hidden_act: str = "gelu"
    max_position_embeddings: int = Field(512, ge=1, le=2**20)
    type_vocab_size: int = Field(2, ge=1, le=2**16)
    layer_norm_eps: float = Field(1e-12, ge=0, le=1)
    pad_token_id: int | None = Field(0, ge=0)
    position_embedding_type: str | None = "absolute"
    is_decoder: bool | None = False
    tokenizer_class: str | None = None


class _Limits(BaseModel):
    """``sentence_bert_config.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)
    max_seq_length: int | None = Field(LENGTH, ge=1)


OTHER_DEFAULTS: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}
"""Where transformers has other defaults than for BERT, by kind."""


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
    kind = config["model_type"]
    if kind not in KINDS:
        raise InputError(
            f"backbone: {quoted(source)} is a {_plain(kind)}; of text encoders, {', '.join(KINDS)} can run."
        )
    sizes = checked(Sizes, OTHER_DEFAULTS[kind] | config, source, "config.json")
    arch = _arch(sizes, source)
    rules, pad = read_tokenizer(source, kind, sizes.tokenizer_class)
    check_tokenizer(source, rules, sizes.vocab_size)
    # RoBERTa counts positions from behind the number of its padding token.
    pad = sizes.pad_token_id if pad is None else pad
    first = 0 if kind == "bert" else _given(sizes.pad_token_id, source) + 1
    most = sizes.max_position_embeddings - first
    limits = checked(_Limits, read_json(source, _LIMITS, "length") or {}, source, _LIMITS)
    limit = LENGTH if limits.max_seq_length is None else limits.max_seq_length
    # Converted first, since it takes no more memory than the file: sizes that are not those of the weights end here.
    state = convert_bert(read_state(source), arch, sizes)
    backbone = TextBackbone(
        arch,
        vocabulary=sizes.vocab_size,
        positions=sizes.max_position_embeddings,
        tokenization=Tokenization(
            rules, min(limit, most) if length is None else length, _given(pad, source), sizes.vocab_size
        ),
        first_position=first,
        readout=_readout(source),
    )
    return backbone, state


def _given(pad: int | None, source: str) -> int:
    if pad is None:
        raise InputError(f"backbone: {quoted(source)}, config.json: pad_token_id: must be the number of a token.")
    return pad


def _plain(kind: str) -> str:
    return kind if kind.replace("-", "").replace("_", "").isalnum() and len(kind) < 40 else quoted(kind)


def _readout(source: str) -> str:
    pooling = read_json(source, _POOLING, "pooling") or {}
    modes = [key.removeprefix("pooling_mode_") for key, on in pooling.items() if key.startswith("pooling_mode_") and on]
    known = {"mean_tokens": "mean", "cls_token": "cls"}
    if len(modes) > 1 or any(mode not in known for mode in modes):
        raise InputError(
            f"backbone: {quoted(source)} pools by {', '.join(map(_plain, modes[:5]))}; "
            "only mean_tokens or cls_token is computed."
        )
    return known[modes[0]] if modes else "cls"


def _arch(sizes: Sizes, source: str) -> Arch:
    """Sizes of a transformers model.

    Raises:
        InputError: if it has a part that our encoder does not compute.
    """
    unsupported = {
        "relative positions": sizes.position_embedding_type not in ("absolute", None),
        "a decoder": bool(sizes.is_decoder),
        f"the activation {quoted(sizes.hidden_act)}": sizes.hidden_act not in ACTIVATIONS,
    }
    if found := [what for what, present in unsupported.items() if present]:
        raise InputError(f"backbone: {quoted(source)} has {', '.join(found)}, which our encoder does not compute.")
    return Arch(
        dim=sizes.hidden_size,
        depth=sizes.num_hidden_layers,
        heads=sizes.num_attention_heads,
        mlp_dim=sizes.intermediate_size,
        eps=sizes.layer_norm_eps,
        act=sizes.hidden_act,
        norm="post",
    )


def convert_bert(take: Taken, arch: Arch, sizes: Sizes) -> dict[str, Tensor]:
    """Our names for the tensors of a BERT-like model; its pooler and heads are left out.

    Args:
        take: tensors under names of transformers.
        arch: sizes of the target.
        sizes: of its tables.

    Returns:
        fp32 tensors under our names.

    Raises:
        InputError: if a tensor is missing or of another shape.
    """
    take = Taken({k.removeprefix("bert.").removeprefix("roberta."): v for k, v in take.tensors.items()}, take.where)
    dim, hidden = arch.dim, arch.mlp_dim
    out = {
        "words.weight": take("embeddings.word_embeddings.weight", sizes.vocab_size, dim),
        "pos_embed": take("embeddings.position_embeddings.weight", sizes.max_position_embeddings, dim),
        "segment": take("embeddings.token_type_embeddings.weight", sizes.type_vocab_size, dim)[0],
        "norm.weight": take("embeddings.LayerNorm.weight", dim),
        "norm.bias": take("embeddings.LayerNorm.bias", dim),
    }
    parts = {
        "attn.proj": ("attention.output.dense", dim, dim),
        "norm1": ("attention.output.LayerNorm", dim, 0),
        "mlp.fc1": ("intermediate.dense", hidden, dim),
        "mlp.fc2": ("output.dense", dim, hidden),
        "norm2": ("output.LayerNorm", dim, 0),
    }
    return out | convert_layers(take, "encoder.layer", "encoder.blocks", arch.depth, dim, QKV, parts)
