"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import csv
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ostinato.backbones import Arch, Backbone, ClipBackbone, Preprocess, TextBackbone, Tokenization, VisionBackbone
from ostinato.backbones.clip import TextTower

AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)

# The models here are tiny: a second thread costs more than it gives, and slows down whatever runs beside the suite.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"
VIT_TI = SHARED / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
VIT_TI_NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def random_backbone(depth: int = 12, dim: int = 16, seed: int = 0) -> VisionBackbone:
    """A tiny frozen ViT with random weights that are large enough for every path to matter."""
    backbone = VisionBackbone(
        Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim),
        patch=4,
        preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3),
    )
    return randomised(backbone, seed, bias=1.0)


WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(40))]


def whole_words() -> Tokenizer:
    """A tokenizer of the words w0 to w39."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def random_text_backbone(depth: int = 6, dim: int = 16, seed: int = 0, readout: str = "mean") -> TextBackbone:
    """A tiny frozen BERT of half the usual depth with random weights."""
    backbone = TextBackbone(
        Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim, eps=1e-12, norm="post"),
        vocabulary=len(WORDS),
        positions=16,
        tokenization=Tokenization(whole_words(), 12, pad=0),
        readout=readout,
    )
    randomised(backbone, seed).words.weight.data *= 4  # more said by a word than by its place
    return backbone


def save_bert(folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny random BERT, as transformers writes it."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=6, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=16)  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    randomised(model, seed)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=whole_words(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


LETTERS = ["<start>", "<end>", *" .0123456789abcdefghijklmnopqrstuvwxyz"]


def letters() -> Tokenizer:
    """A tokenizer of single letters and digits, with both ends as CLIP has them."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(LETTERS)}, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 0), ("<end>", 1)]
    )
    return tokenizer


def random_clip_backbone(depth: int = 6, dim: int = 16, seed: int = 0) -> ClipBackbone:
    """A tiny frozen CLIP of half the usual depth with random weights."""
    arch = Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim, act="quick_gelu")
    text = Arch(dim=12, depth=2, heads=2, mlp_dim=24, act="quick_gelu", causal=True)
    tower = TextTower(text, vocabulary=len(LETTERS), positions=40, joint=8, tokenizer=letters())
    backbone = ClipBackbone(arch, patch=4, preprocess=Preprocess(8, (0.5,) * 3, (0.5,) * 3), text=tower, joint=8)
    return randomised(backbone, seed)


def save_clip(folder: Path, seed: int = 0) -> Path:
    """The folder of a tiny random CLIP, as transformers writes it."""
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

    sizes = {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "projection_dim": 8}
    torch.manual_seed(seed)
    config = CLIPConfig(
        text_config=sizes | {"hidden_size": 12, "vocab_size": len(LETTERS), "max_position_embeddings": 40,
                             "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config=sizes | {"hidden_size": 16, "image_size": 8, "patch_size": 4},
        projection_dim=8,
    )  # fmt: skip
    randomised(CLIPModel(config), seed).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=letters(), bos_token="<start>", eos_token="<end>", pad_token="<end>", unk_token="."
    ).save_pretrained(folder)
    return folder


def randomised(model: AnyModule, seed: int, bias: float = 0.0) -> AnyModule:
    """Frozen random weights: matrices and biases around 0, scales around 1.

    Args:
        model: changed in place.
        seed: of the weights.
        bias: what biases lie around; other values make all features alike where a layer normalises at its end.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        centre = 0.0 if p.ndim > 1 or name == "segment" else bias if name.endswith("bias") else 1.0
        p.data = torch.randn(p.shape, generator=rng) * (0.3 if p.ndim > 1 else 0.1) + centre
    return model.requires_grad_(False).eval()


def sentences(n_classes: int, n: int, seed: int = 0, own: float = 0.75) -> tuple[list[str], list[int]]:
    """Texts of 3 to 9 words; a share ``own`` of the words of a class are its own four."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for c in range(n_classes):
        for _ in range(n):
            theirs = rng.integers(4, size=rng.integers(3, 10)) + 4 * c
            other = rng.integers(40, size=len(theirs))
            texts.append(" ".join(f"w{w}" for w in np.where(rng.random(len(theirs)) < own, theirs, other)))
            labels.append(c)
    return texts, labels


def text_tables(folder: Path, n_classes: int, suffix: str = "parquet", seed: int = 0) -> Path:
    """``train`` and ``test`` tables of sentences; classes are called after the planets of a small story."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", 12), ("test", 6)):
        texts, labels = sentences(n_classes, n, seed + (part == "test"))
        table = pa.table({"text": texts, "label": [f"planet {c}" for c in labels]})
        if suffix == "parquet":
            pq.write_table(table, folder / f"{part}.parquet")
        elif suffix == "csv":
            csv.write_csv(table, folder / f"{part}.csv")
        else:
            lines = [json.dumps(row) for row in table.to_pylist()]
            (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def photos(root: Path, classes: dict[str, tuple[int, int, int]], n: int = 6, seed: int = 0) -> Path:
    """An image folder: per class, small JPEGs of a colour with noise."""
    rng = np.random.default_rng(seed)
    for name, colour in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = np.clip(rng.normal(0, 25, (40, 48, 3)) + colour, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")
    return root


RED, GREEN, BLUE = (220, 30, 30), (30, 200, 30), (30, 30, 220)
YELLOW, WHITE, CYAN = (230, 220, 40), (240, 240, 240), (40, 220, 220)


@pytest.fixture
def backbone() -> Backbone:
    return random_backbone()


@pytest.fixture
def vit_ti() -> Path:
    if not VIT_TI.exists():
        pytest.skip("the real ViT-Ti weights are not beside this checkout (../shared/weights)")
    return VIT_TI
