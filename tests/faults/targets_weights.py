"""Readers of weights, and of folders as the transformers library writes them."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from ostinato.backbones.npz import load_npz
from ostinato.backbones.timm_weights import convert_timm, read_weights
from ostinato.backbones.weights import _load, load_backbone
from ostinato.contract.tiny_models import random_backbone
from tests.conftest import save_bert, save_clip
from tests.faults.fuzz import Target
from tests.faults.targets_options import file_of

WORDS = (
    b"F32", b"BF16", b"F64", b"I64", b"BOOL", b"F8_E4M3", b"U8", b'"shape":[', b'"data_offsets":[0,0]', b"-1", b"0",
    b"{}", b"[]", b"null", b"true", b"1e400", b"NaN", b'"', b":", b",", b"9999999999", b"\\ud800", b"\x7fc\x00\x00",
    b"\x93NUMPY", b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"cbuiltins\neval\n", b"\x80\x02", b"R.",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
)  # fmt: skip

JSON = (
    b'"model_type"', b'"bert"', b'"roberta"', b'"clip"', b'"auto_map":{"AutoConfig":"a.B"},', b'"hidden_size"', b"-1",
    b"null", b"true", b"0", b"1.5", b"1000000000", b"NaN", b"Infinity", b'"', b":", b",", b"{", b"}", b"[", b"]",
    b'"type":', b'"WordLevel"', b'"BPE"', b'"WordPiece"', b'"Unigram"', b'"Precompiled"', b'"Regex":"(a+)+$"',
    b'"ids":[999999]', b'"added_tokens":', b'"post_processor":null,', b'"pre_tokenizer":null,', b'"normalizer":',
    b'"\\ud800"',
)  # fmt: skip


def _tiny() -> dict[str, torch.Tensor]:
    """A tiny ViT under timm's names."""
    own = random_backbone(depth=1, dim=8).state_dict()
    names = {"patch_embed.weight": "patch_embed.proj.weight", "patch_embed.bias": "patch_embed.proj.bias"}
    return {names.get(k, k.removeprefix("encoder.")): v for k, v in own.items()}


def _safetensors() -> list[bytes]:
    tiny = _tiny()
    return [
        save(tiny),
        save({k: v.half() for k, v in tiny.items()}),
        save({"a": torch.zeros(2, 3), "b": torch.ones(1)}),
    ]


def _pth() -> list[bytes]:
    tiny, small = _tiny(), {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    return [_saved({"state_dict": tiny}), _saved(small), _saved(small, old=True), _saved({"model": small, "epoch": 3})]


def _saved(value: object, *, old: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not old)
    return file.getvalue()


def _load_tiny(name: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        backbone = random_backbone(depth=1, dim=8)
        _load(backbone, convert_timm(read_weights(file_of(data, name)), backbone), "tiny")
        return backbone

    return read


def _vit() -> torch.nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=0)


def _npz() -> list[bytes]:
    arrays = {
        "embedding/kernel": (4, 4, 3, 8), "embedding/bias": (8,), "cls": (1, 1, 8),
        "Transformer/posembed_input/pos_embedding": (1, 5, 8),
        "Transformer/encoder_norm/scale": (8,), "Transformer/encoder_norm/bias": (8,),
    }  # fmt: skip
    at, heads = "Transformer/encoderblock_0", "MultiHeadDotProductAttention_1"
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        arrays |= {f"{at}/{norm}/scale": (8,), f"{at}/{norm}/bias": (8,)}
    for part in ("query", "key", "value"):
        arrays |= {f"{at}/{heads}/{part}/kernel": (8, 2, 4), f"{at}/{heads}/{part}/bias": (2, 4)}
    arrays |= {f"{at}/{heads}/out/kernel": (2, 4, 8), f"{at}/{heads}/out/bias": (8,)}
    arrays |= {f"{at}/MlpBlock_3/Dense_0/kernel": (8, 32), f"{at}/MlpBlock_3/Dense_0/bias": (32,)}
    arrays |= {f"{at}/MlpBlock_3/Dense_1/kernel": (32, 8), f"{at}/MlpBlock_3/Dense_1/bias": (8,)}
    out = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, **{k: np.zeros(shape, np.float32) for k, shape in arrays.items()})  # pyright: ignore[reportArgumentType]
        out.append(file.getvalue())
    return out


def _read_npz(data: bytes) -> object:
    return load_npz(file_of(data, "w.npz"), _vit())


@cache
def _models() -> tempfile.TemporaryDirectory[str]:
    """Intact folders, gone when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="ostinato-faults-")
    save_bert(Path(folder.name) / "bert")
    save_clip(Path(folder.name) / "clip")
    return folder


def _folder(kind: str, name: str, other: Sequence[dict[str, object]] = ()) -> Target:
    """A folder with one file damaged."""

    def seeds() -> list[bytes]:
        path = Path(_models().name) / kind / name
        return [json.dumps(tree).encode() for tree in other] or [path.read_bytes()]

    def read(data: bytes) -> object:
        folder = Path(_models().name) / f"{kind} {name.replace('/', ' ')}"
        if not folder.exists():
            shutil.copytree(Path(_models().name) / kind, folder)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return load_backbone("tiny", weights=folder)

    return Target(f"{kind} {name}", seeds, read, WORDS if name.endswith(".safetensors") else JSON, cost=100)


TARGETS = [
    Target("safetensors", _safetensors, _load_tiny("w.safetensors"), WORDS, cost=8),
    Target("pth", _pth, _load_tiny("w.pth"), WORDS, cost=8),
    Target("npz", _npz, _read_npz, WORDS, cost=20),
    _folder("bert", "config.json"),
    _folder("bert", "tokenizer.json"),
    _folder("bert", "tokenizer_config.json"),
    _folder("bert", "special_tokens_map.json", [{"cls_token": "[CLS]", "pad_token": {"content": "[PAD]"}}]),
    _folder("bert", "added_tokens.json", [{"[NEW]": 44}]),
    _folder("bert", "model.safetensors"),
    _folder("bert", "1_Pooling/config.json", [{"pooling_mode_mean_tokens": True}]),
    _folder("bert", "sentence_bert_config.json", [{"max_seq_length": 9}]),
    _folder("clip", "config.json"),
    _folder("clip", "tokenizer.json"),
    _folder("clip", "preprocessor_config.json", [{"image_mean": [0.5] * 3, "image_std": [0.5] * 3}]),
]
