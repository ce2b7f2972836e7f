"""Tiny frozen random encoders of every kind, and learnable streams for them."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from ostinato.backbones import Arch, ClipBackbone, Preprocess, TextBackbone, Tokenization, VisionBackbone
from ostinato.backbones.clip import TextTower
from ostinato.streams import EvalTransform, Source, StreamOptions, TaskStream, TextTransform, Transform, arrays
from ostinato.streams.texts import Texts

Kind = Literal["image", "text", "clip"]
"""Kind of a tiny encoder; "clip" reads images, and class names."""

SIDE = 8
"""Side of a tiny image in pixels."""

PREPROCESS = Preprocess(SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{i}" for i in range(40))]

LETTERS = ["<start>", "<end>", *" .0123456789abcdefghijklmnopqrstuvwxyz"]

M = TypeVar("M", bound=nn.Module)


def randomised(model: M, seed: int, bias: float = 0.0) -> M:
    """Set frozen random weights: matrices around 0, scales around 1.

    Args:
        model: changed in place.
        seed: of the weights.
        bias: mean of biases; only 0 keeps features distinct if layers end with a norm.
    """
    rng = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        centre = 0.0 if p.ndim > 1 or name == "segment" else bias if name.endswith("bias") else 1.0
        p.data = torch.randn(p.shape, generator=rng) * (0.3 if p.ndim > 1 else 0.1) + centre
    return model.requires_grad_(False).eval()


def random_backbone(depth: int = 12, dim: int = 16, seed: int = 0) -> VisionBackbone:
    """A tiny frozen ViT with random weights large enough for every path to matter."""
    backbone = VisionBackbone(Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim), patch=4, preprocess=PREPROCESS)
    return randomised(backbone, seed, bias=1.0)


def whole_words() -> Tokenizer:
    """A tokenizer of the words w0 to w39."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def random_text_backbone(
    depth: int = 6, dim: int = 16, seed: int = 0, readout: Literal["cls", "mean"] = "mean"
) -> TextBackbone:
    """A tiny frozen BERT of half the usual depth with random weights."""
    backbone = TextBackbone(
        Arch(dim=dim, depth=depth, heads=2, mlp_dim=2 * dim, eps=1e-12, norm="post"),
        vocabulary=len(WORDS),
        positions=16,
        tokenization=Tokenization(whole_words(), 12, pad=0),
        readout=readout,
    )
    randomised(backbone, seed).words.weight.data *= 4  # words weigh more than positions
    return backbone


def letters() -> Tokenizer:
    """A tokenizer of single letters and digits, with start and end tokens as in CLIP."""
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
    backbone = ClipBackbone(arch, patch=4, preprocess=PREPROCESS, text=tower, joint=8)
    return randomised(backbone, seed)


BACKBONES = {"image": random_backbone, "text": random_text_backbone, "clip": random_clip_backbone}
"""Constructor of a tiny encoder of each kind."""


def tiny_stream(kind: Kind = "image", n_classes: int = 5, step: int = 2, seed: int = 0) -> TaskStream:
    """A stream of classes that random features can separate, with 12 training and 6 test samples each.

    Args:
        kind: of the encoder.
        n_classes: in all; images show colours and slopes with noise, texts words of their class.
        step: classes per task.
        seed: of the noise.
    """
    source = _texts(n_classes, seed) if kind == "text" else _images(n_classes, seed)
    return TaskStream(source, StreamOptions(step=step, validation=0))


def transform_of(stream: TaskStream) -> Transform:
    """Transform of the samples of a tiny stream."""
    return (
        TextTransform(Tokenization(whole_words(), 12, pad=0))
        if stream.source.modality == "text"
        else EvalTransform(SIDE)
    )


def unpadded(x: Tensor) -> Tensor:
    """A sample (1, ...) without the padding of its batch."""
    return x if x.ndim > 2 else x[:, x[0] != WORDS.index("[PAD]")]


def sentences(n_classes: int, n: int, seed: int = 0, own: float = 0.75) -> tuple[list[str], list[int]]:
    """Texts of 3 to 9 words, ``n`` per class; a share ``own`` of words is from the four words of the class."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for c in range(n_classes):
        for _ in range(n):
            theirs = rng.integers(4, size=rng.integers(3, 10)) + 4 * c
            other = rng.integers(40, size=len(theirs))
            texts.append(" ".join(f"w{w}" for w in np.where(rng.random(len(theirs)) < own, theirs, other)))
            labels.append(c)
    return texts, labels


def _texts(n_classes: int, seed: int) -> Source:
    train, test = (
        Texts(pa.chunked_array([texts]), lambda i: f"row {i}", np.arange(len(labels)), np.array(labels))
        for texts, labels in (sentences(n_classes, n, 2 * seed + part, own=1.0) for part, n in enumerate((12, 6)))
    )
    return Source("toy", [str(c) for c in range(n_classes)], train, test, "none")


def _images(n_classes: int, seed: int) -> Source:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for c in range(n_classes):
            angle = 2 * np.pi * c / n_classes
            slope = 0.5 + 0.5 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))
            colour = np.array([c % 2, (c // 2) % 2, (c // 4) % 2]) * 0.5 + 0.25
            base = slope[..., None] * 0.5 + colour * 0.5
            images += [np.clip(base + rng.normal(0, 0.03, base.shape), 0, 1) for _ in range(n)]
            labels += [c] * n
        return (np.stack(images) * 255).astype(np.uint8), np.array(labels)

    train, test = draw(12), draw(6)
    return arrays(*train, *test, augment="none")
