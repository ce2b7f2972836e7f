"""Pre-trained BERT-like encoders of the transformers library, converted to :class:`TextBackbone`.

transformers supplies names of architectures, weights and tokenizers; the encoder is ours. Parity with transformers'
forward pass is tested in ``tests/golden/test_transformers_parity.py``.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

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
from ostinato.backbones.text import TextBackbone, Tokenization
from ostinato.errors import InputError
from ostinato.quoting import quoted

KINDS = ("bert", "roberta", "xlm-roberta")
"""Supported ``model_type`` values: models whose layers our encoder computes."""

LENGTH = 256
"""Default maximum tokens of a text, as in the literature on text streams, where the weights have none."""

_POOLING = "1_Pooling/config.json"
_LIMITS = "sentence_bert_config.json"

QKV = tuple(f"attention.self.{name}" for name in ("query", "key", "value"))


class Sizes(LayerSizes):
    """``config.json``."""

    vocab_size: int = Field(30522, ge=1, le=2**26)
    hidden_act: str = "gelu"
    max_position_embeddings: int = Field(512, ge=1, le=2**20)
    type_vocab_size: int = Field(2, ge=1, le=2**16)
    layer_norm_eps: float = Field(1e-12, ge=0, le=1)
    pad_token_id: int | None = Field(0, ge=0)
    position_embedding_type: str | None = "absolute"
    is_decoder: bool | None = False
    tokenizer_class: str | None = None


class _Limits(ModelFile):
    """``sentence_bert_config.json``."""

    max_seq_length: int | None = Field(LENGTH, ge=1)


OTHER_DEFAULTS: dict[str, dict[str, int]] = {
    "bert": {},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
    "xlm-roberta": {"pad_token_id": 1},
}
"""Defaults of transformers that differ from BERT's, by ``model_type``."""


def text_backbone(source: str, length: int | None = None) -> tuple[TextBackbone, dict[str, Tensor]]:
    """Make a text backbone without weights, and its state dict, from a folder or a name on the Hugging Face hub.

    The read-out and, if ``length`` is None, the maximum tokens are those of a sentence encoder's folder; otherwise the
    first token, and 256 tokens or what fits.

    Raises:
        InputError: if there is no such model, or it has a part that our encoder does not compute.
    """
    config = read_config(source)
    kind = config["model_type"]
    if kind not in KINDS:
        raise InputError(
            f"backbone: {quoted(source)} must be one of {', '.join(KINDS)} to encode texts; it is a {_plain(kind)}."
        )
    sizes = checked(Sizes, OTHER_DEFAULTS[kind] | config, source, "config.json")
    unsupported = {
        "relative positions": sizes.position_embedding_type not in ("absolute", None),
        "a decoder": bool(sizes.is_decoder),
    }
    if found := [part for part, present in unsupported.items() if present]:
        raise InputError(f"backbone: {quoted(source)} has {', '.join(found)}, which our encoder does not compute.")
    arch = sizes.arch(source, norm="post")
    rules, pad = read_tokenizer(source, kind, sizes.tokenizer_class)
    check_tokenizer(source, rules, sizes.vocab_size)
    # RoBERTa counts positions from after the number of its padding token.
    pad = sizes.pad_token_id if pad is None else pad
    first = 0 if kind == "bert" else _given(sizes.pad_token_id, source) + 1
    most = sizes.max_position_embeddings - first
    limits = checked(_Limits, read_json(source, _LIMITS, "length") or {}, source, _LIMITS)
    limit = LENGTH if limits.max_seq_length is None else limits.max_seq_length
    # Converted before the model is built, in no more memory than the file takes: wrong sizes fail here.
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
            f"backbone: {quoted(source)} must pool by mean_tokens or cls_token, not by "
            f"{', '.join(map(_plain, modes[:5]))}."
        )
    return known[modes[0]] if modes else "cls"


def convert_bert(take: Taken, arch: Arch, sizes: Sizes) -> dict[str, Tensor]:
    """Convert the tensors of a BERT-like model to our names, in fp32; its pooler and heads are left out."""
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
