"""Pre-trained BERT-like encoders of the transformers library, converted to :class:`TextBackbone`.

transformers supplies architectures' names, weights and tokenizers; the transformer that runs is ours. Parity with its
own forward pass is tested in ``tests/golden/test_transformers_parity.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.text import TextBackbone, Tokenization
from ostinato.errors import InputError

KINDS = ("bert", "roberta", "xlm-roberta")
"""Kinds of model (``model_type``) whose layers our encoder computes."""

LENGTH = 256
"""Most tokens of a text where the weights do not say: what the literature on text streams uses."""

_POOLING = "1_Pooling/config.json"
_LIMITS = "sentence_bert_config.json"


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
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    try:
        config: Any = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _missing(source, "configuration", error) from error
    arch = _arch(config, source)
    # RoBERTa counts positions from behind the number of its padding token.
    first = 0 if config.model_type == "bert" else config.pad_token_id + 1
    most = config.max_position_embeddings - first
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source)
        with _quiet():
            model = AutoModel.from_pretrained(source, add_pooling_layer=False, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise _missing(source, "tokenizer or weights", error) from error
    rules = getattr(tokenizer, "backend_tokenizer", None)
    if rules is None:
        raise InputError(f"backbone: {source!r} has no fast tokenizer (tokenizer.json), which is needed.")
    limit = _beside(source, _LIMITS).get("max_seq_length", LENGTH)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id
    backbone = TextBackbone(
        arch,
        vocabulary=config.vocab_size,
        positions=config.max_position_embeddings,
        tokenization=Tokenization(rules, min(limit, most) if length is None else length, pad),
        first_position=first,
        readout=_readout(source),
    )
    return backbone, convert_bert(model.state_dict(), arch)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars, and without the list of heads that are left out on purpose."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _missing(source: str, what: str, error: Exception) -> InputError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(
        f"backbone: the {what} of {source!r} cannot be read ({first}). Give a folder with config.json, "
        "model.safetensors and tokenizer.json as backbone=FOLDER, or a name that the Hugging Face hub knows."
    )


def _beside(source: str, name: str) -> dict[str, Any]:
    """A JSON file that sentence encoders bring beside the weights; empty where there is none."""
    path = Path(source) / name
    if not Path(source).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(source, name))
        except EntryNotFoundError:
            return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _readout(source: str) -> str:
    pooling = _beside(source, _POOLING)
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
    parts = {
        "attn.proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for i in range(arch.depth):
        theirs, ours = f"encoder.layer.{i}", f"encoder.blocks.{i}"
        for kind in ("weight", "bias"):
            qkv = [state[f"{theirs}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            out[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
            for mine, other in parts.items():
                out[f"{ours}.{mine}.{kind}"] = state[f"{theirs}.{other}.{kind}"]
    return out
