"""Fixtures that every part of the suite shares."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before huggingface_hub is imported: no test may depend on a network, or on what was downloaded earlier.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": os.devnull}

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pyarrow import csv
from torch.utils.flop_counter import flop_registry

from ostinato import lookup, registry
from ostinato.backbones import Backbone
from ostinato.contract.tiny_models import LETTERS, WORDS, letters, random_backbone, randomised, sentences, whole_words
from tests.cli.forking import Server

# The models here are tiny: a second thread costs more than it gives, and slows down whatever runs beside the suite.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"
VIT_TI = SHARED / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
VIT_TI_NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"

RECORD: dict[str, Any] = {
    "run_id": "0" * 32, "started": "now", "method": "l2p", "method_sha256": None, "options": {}, "recipe": {},
    "protocol": "sample", "data_seen": "current task", "scored_on": "test", "backbone": None, "preprocess": {},
    "precision": "fp32", "precision_reason": "asked for", "device": "cpu", "threads": 1, "processes": 1,
    "stream": {"source": "x", "class_order": [os.fsdecode(b"caf\xe9")], "options": {}, "tasks": [], "skipped": [],
               "notes": [], "known": None},
    "continues": None, "versions": {},
}  # fmt: skip
"""Fields of a run's record."""


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
def counts_attention() -> None:
    """Skip a test where torch does not count the arithmetic of attention on the CPU."""
    if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
        pytest.skip("this release of torch does not count the attention on the CPU")


@pytest.fixture
def backbone() -> Backbone:
    return random_backbone()


@pytest.fixture
def vit_ti() -> Path:
    if not VIT_TI.exists():
        pytest.skip("the real ViT-Ti weights are not beside this checkout (../shared/weights)")
    return VIT_TI


@pytest.fixture(scope="session")
def forked() -> Iterator[Server]:
    """Begins commands in processes that are there at once."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def untouched() -> Iterator[None]:
    """Registrations of a test end with it."""
    known = lookup.methods()
    yield
    registry.restore(known)
