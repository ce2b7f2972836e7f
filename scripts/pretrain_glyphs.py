"""Pre-train the bundled backbone to classify characters of matplotlib's fonts.

    OMP_NUM_THREADS=2 python scripts/pretrain_glyphs.py

trains the bundled architecture (12 layers, width 128) from scratch to name the 851 characters of ``PRETRAIN``:
cross-entropy, AdamW, 4,500 steps of 128 images, fp32 (bf16 autocast was slower on the CPU it was measured on).
Jitter grows from none to full over the first 40 % of the steps. With full jitter from the start, pilots of a few
hundred steps hardly left the plateau of the loss. At full strength, half of the images keep only 8 x 8 pixels, as
in scikit-learn's digits. The classifier is dropped and the rest stored in bf16, with steps, batch, seed, classes,
training accuracy and torch version as metadata.

Measured on 2 CPU cores shared with other work: 32.6 minutes of training, training accuracy 0.741. ``--check``
prints the test accuracy of the nearest class mean by cosine, on data without training classes:

* scikit-learn's digits, a quarter for testing: 0.949 enlarged bilinearly, 0.944 bicubically; untrained 0.313, 0.298.
* the first 50 classes of the stream of glyphs: 0.994; untrained 0.198. The first 200: 0.974; untrained 0.080.

``--characters`` only selects the characters.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones.vision import VisionBackbone
from ostinato.backbones.weights import embedded_backbone, load_backbone
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.streams import glyphs
from ostinato.streams.source import Split

ASSETS = Path(__file__).resolve().parents[1] / "src" / "ostinato" / "assets"

CATEGORIES = set(["Lu", "Ll", "Lt", "Lo", "Sm", "So", "Sc", "Po", "Ps", "Pe", "Pi", "Pf", "Pd", "Pc"])
"""Unicode's kinds of visible characters that stand alone; no marks, modifiers, spaces, controls or numbers."""

WITH_DIGITS = re.compile(
    r"\b(DIGIT|NUMBER|NUMERAL|TONE (TWO|FIVE|SIX)|LETTER TWO|TRESILLO|CUATRILLO|PLAYING CARD|DECIMAL EXPONENT"
    r"|CUBE ROOT|FOURTH ROOT|SUBSCRIPT (ONE|TWO)|TIRONIAN|EZH|YOGH|LETTER OU|CAPITAL OU)\b"
)
"""Names of characters that look like digits, although Unicode gives them no value."""

LEFT_OUT = ("BRAILLE", "LATIN", "GREEK", "CYRILLIC", "MATHEMATICAL")
"""Excluded from the stream: patterns of dots, and variants of training characters."""

SAME_DIGIT, SAME_PRETRAIN, SAME_STREAM = 0.93, 0.955, 0.93
"""Characters whose blurred drawings have a larger cosine than this are look-alikes."""

LEAST_INK = 100.0
"""Euclidean norm of a blurred drawing (24 x 24 pixels up to 255) below which it counts as empty."""


def choose_characters() -> dict[str, str]:
    """Select both sets of characters, without digits, characters like digits, and look-alikes of earlier ones."""
    digits = np.stack([_look(digit, font) for digit in "0123456789" for font in glyphs.FONTS])
    looks = {c: _look(c) for c in map(chr, sorted(glyphs.code_points())) if _usable(c)}
    found = [c for c, look in looks.items() if look.any() and float((digits @ look).max()) <= SAME_DIGIT]
    known = {c for c in looks if _for_pretraining(c)}
    second = [c for c in found if _for_stream(c) and not known & set(c + unicodedata.normalize("NFKD", c))]
    pretrain = _distinct([c for c in found if c in known], [], looks, SAME_PRETRAIN)
    stream = _distinct(second, pretrain, looks, SAME_STREAM)
    return {"pretrain": "".join(pretrain), "stream": "".join(_interleaved(stream, looks))}


def _usable(character: str) -> bool:
    return (
        unicodedata.category(character) in CATEGORIES
        and not glyphs.is_digit(character)
        and not WITH_DIGITS.search(glyphs.class_name(character))
    )


def _for_pretraining(character: str) -> bool:
    """Latin, Greek and Cyrillic letters, general punctuation, currencies, basic arrows and operators."""
    if unicodedata.normalize("NFKD", character) != character:
        return False
    kind, code = unicodedata.category(character), ord(character)
    if kind.startswith("L"):
        return glyphs.class_name(character).startswith(("LATIN ", "GREEK ", "CYRILLIC "))
    common = code < 0x100 or 0x2190 <= code < 0x2300 or kind == "Sc"
    return common or (kind.startswith("P") and code < 0x2E80 and not 0x500 <= code < 0x2000)


def _for_stream(character: str) -> bool:
    """Letters and symbols of other scripts."""
    return not unicodedata.category(character).startswith("P") and not glyphs.class_name(character).startswith(LEFT_OUT)


def _look(character: str, font: str | None = None) -> np.ndarray:
    """Blurred drawing as a unit vector; zeros if it is nearly empty."""
    large = glyphs.drawn(character, font or glyphs.fonts_with(character)[0]).filter(ImageFilter.GaussianBlur(5))
    look = np.asarray(large.resize((24, 24), Image.Resampling.BOX), dtype=np.float32).ravel()
    norm = float(np.linalg.norm(look))
    return look / norm if norm > LEAST_INK else np.zeros_like(look)


def _distinct(characters: list[str], others: list[str], looks: dict[str, np.ndarray], same: float) -> list[str]:
    """Select characters that look like none of ``others`` and like no earlier selected one."""
    kept = list(others)
    known = np.zeros((len(others) + len(characters), 24 * 24), np.float32)
    for i, character in enumerate(others):
        known[i] = looks[character]
    for character in characters:
        if not kept or float((known[: len(kept)] @ looks[character]).max()) <= same:
            known[len(kept)] = looks[character]
            kept.append(character)
    return kept[len(others) :]


def _interleaved(characters: list[str], looks: dict[str, np.ndarray]) -> list[str]:
    """Order characters so that scripts take turns, each with the one least similar to earlier ones."""
    scripts = [glyphs.class_name(c).split()[0] if unicodedata.category(c).startswith("L") else "" for c in characters]
    large = {script for script, count in Counter(scripts).items() if script and count >= 10}
    groups: dict[str, list[int]] = defaultdict(list)
    for i, (character, script) in enumerate(zip(characters, scripts, strict=True)):
        groups[script if script in large else f"{ord(character) >> 8:x}"].append(i)
    vectors = np.stack([looks[c] for c in characters])
    likeness = vectors @ vectors.T
    nearest = np.zeros(len(characters), np.float32)
    ordered: list[str] = []
    while groups:
        for group in list(groups):
            best = min(groups[group], key=lambda i: (float(nearest[i]), i))
            groups[group].remove(best)
            if not groups[group]:
                del groups[group]
            ordered.append(characters[best])
            nearest = np.maximum(nearest, likeness[best])
    return ordered


class Bank:
    """Drawings of every character of ``PRETRAIN`` in every font that has it.

    Attributes:
        images: (n, 64, 64) uint8, consecutive for each character.
        start: index of each character's first image.
        count: number of images of each character.
    """

    def __init__(self) -> None:
        drawings = [
            [np.asarray(glyphs.drawn(c, font, 2 * glyphs.SIZE)) for font in glyphs.fonts_with(c)]
            for c in glyphs.PRETRAIN
        ]
        self.images = torch.from_numpy(np.stack([image for images in drawings for image in images]))
        self.count = torch.tensor([len(images) for images in drawings])
        self.start = self.count.cumsum(0) - self.count

    def batch(self, size: int, rng: torch.Generator, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Random characters in random fonts, jittered.

        Args:
            size: how many.
            rng: where all randomness comes from.
            strength: of the jitter, from 0 (as drawn) to 1.

        Returns:
            Images (size, 3, 32, 32) in [0, 1] and labels (size,).
        """
        labels = torch.randint(len(self.count), (size,), generator=rng)
        number = (torch.rand(size, generator=rng) * self.count[labels]).long()
        x = self.images[self.start[labels] + number].float().div(255).unsqueeze(1)
        x = coarsen(ink(warp(thicken(x, rng, strength), rng, strength), rng, strength), rng, strength)
        return x.expand(-1, 3, -1, -1), labels


def uniform(n: int, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Draw (n, 1, 1, 1) numbers between ``low`` and ``high``."""
    return torch.rand(n, 1, 1, 1, generator=rng) * (high - low) + low


def thicken(x: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Widen or thin strokes, by up to two of 64 pixels a side."""
    amount = strength * uniform(len(x), -0.8, 2.0, rng)
    wide, wider = F.max_pool2d(x, 3, 1, 1), F.max_pool2d(x, 5, 1, 2)
    thin = -F.max_pool2d(-x, 3, 1, 1)
    x = torch.lerp(x, thin, (-amount).clamp(0, 1))
    x = torch.where(amount > 0, torch.lerp(x, wide, amount.clamp(0, 1)), x)
    return torch.where(amount > 1, torch.lerp(wide, wider, (amount - 1).clamp(0, 1)), x)


def warp(x: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Apply rotation, shear, scale, shift and a smooth distortion; (n, 1, 64, 64) to (n, 1, 32, 32)."""
    n = len(x)
    angle, shear, shift_x, shift_y = (strength * uniform(n, -r, r, rng).flatten() for r in (0.3, 0.3, 0.12, 0.12))
    scale_x, scale_y = (uniform(n, 0.7, 1.35, rng).flatten() ** strength for _ in range(2))
    cos, sin = angle.cos() / scale_x, angle.sin() / scale_y
    turn_x = torch.stack([cos, shear * cos - angle.sin() / scale_x, shift_x], -1)
    turn_y = torch.stack([sin, shear * sin + angle.cos() / scale_y, shift_y], -1)
    grid = F.affine_grid(torch.stack([turn_x, turn_y], 1), list(x.shape), align_corners=False)
    bend = torch.randn(n, 2, 4, 4, generator=rng) * strength * uniform(n, 0.0, 0.08, rng)
    bend = F.interpolate(bend, size=x.shape[-2:], mode="bicubic", align_corners=True)
    return F.avg_pool2d(F.grid_sample(x, grid + bend.permute(0, 2, 3, 1), align_corners=False), 2)


def ink(x: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Apply blur, contrast and noise; one in ten images is dark on bright."""
    n = len(x)
    kernel = torch.tensor([0.25, 0.5, 0.25])
    blurred = F.conv2d(F.pad(x, (1, 1, 1, 1)), torch.outer(kernel, kernel).view(1, 1, 3, 3))
    x = torch.lerp(x, blurred, uniform(n, 0.0, 1.0, rng))
    ground = uniform(n, -0.2, 0.15, rng).clamp(min=0)
    x = ground + x * (uniform(n, 0.6, 1.0, rng) - ground)
    x = x + torch.randn(x.shape, generator=rng) * uniform(n, -0.03, 0.06, rng).clamp(min=0)
    return torch.where(uniform(n, 0, 1, rng) < 0.1 * strength, 1 - x, x).clamp(0, 1)


def coarsen(x: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Reduce half of the images (at full strength) to 8 x 8 pixels, and enlarge them in one of two ways."""
    small = F.avg_pool2d(x, 4)
    soft = F.interpolate(small, size=x.shape[-2:], mode="bilinear", align_corners=False)
    sharp = F.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
    kind = uniform(len(x), 0, 1, rng)
    return torch.where(kind < strength / 4, soft, torch.where(kind < strength / 2, sharp, x))


def initialise(backbone: VisionBackbone, rng: torch.Generator) -> None:
    """Initialise weights and tokens by a truncated normal with deviation 0.02, biases by zeros."""
    for name, p in backbone.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
        elif p.ndim == 1:
            nn.init.ones_(p)
        else:
            nn.init.trunc_normal_(p, std=0.02, generator=rng)


def pretrain(
    steps: int, batch: int, seed: int, minutes: float | None = None, lr: float = 1e-3
) -> tuple[VisionBackbone, dict[str, str]]:
    """Train the bundled architecture to name characters.

    Args:
        steps: of the optimiser.
        batch: images in a step.
        seed: of the initial weights and of all batches.
        minutes: where given, as many steps as take this long here; the result then depends on the machine.
        lr: the highest learning rate.

    Returns:
        The backbone, and what to note in the file.
    """
    rng = torch.Generator().manual_seed(seed)
    begin = time.perf_counter()
    bank = Bank()
    print(
        f"{len(bank.count)} characters, {len(bank.images)} drawings, {time.perf_counter() - begin:.0f} s",
        flush=True,
    )
    backbone, classes = embedded_backbone(), len(bank.count)
    initialise(backbone, rng)
    head = nn.Linear(backbone.dim, classes)
    nn.init.trunc_normal_(head.weight, std=0.02, generator=rng)
    nn.init.zeros_(head.bias)
    parameters = [*backbone.parameters(), *head.parameters()]
    decayed = [p for p in parameters if p.ndim == 2 or p.ndim == 4]
    plain = [p for p in parameters if p.ndim not in (2, 4)]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.99)
    )
    begin, right, step, warm_up = time.perf_counter(), 0.0, 0, 100
    while step < steps:
        rate = lr * min((step + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        # With full jitter from the first step, the loss stays on its plateau for thousands of steps.
        images, labels = bank.batch(batch, rng, strength=min(1.0, 2.5 * step / steps))
        logits = head(backbone(images))
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        right += 0.01 * ((logits.argmax(1) == labels).float().mean().item() - right)
        step += 1
        if step == 50 and minutes is not None:
            steps = max(step, round(minutes * 60 * step / (time.perf_counter() - begin)))
        if step % 100 == 0 or step == steps:
            spent = (time.perf_counter() - begin) / 60
            print(f"step {step}/{steps} loss {loss.item():.3f} accuracy {right:.3f} {spent:.1f} min", flush=True)
    notes = {
        "steps": steps,
        "batch": batch,
        "seed": seed,
        "classes": classes,
        "train_accuracy": f"{right:.4f}",
    }
    return backbone, {k: str(v) for k, v in notes.items()} | {"torch": torch.__version__}


def ncm(backbone: VisionBackbone, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> float:
    """Test accuracy of the nearest class mean by cosine.

    Args:
        backbone: gives the features.
        train: images (n, 3, 32, 32) uint8 and labels (n,).
        test: the same.

    Returns:
        A fraction.
    """
    with torch.inference_mode():
        known, asked = (
            torch.cat([F.normalize(backbone(part), dim=1) for part in images.split(256)]) for images, _ in (train, test)
        )
    means = torch.stack([known[train[1] == c].mean(0) for c in train[1].unique()])
    return float(((asked @ F.normalize(means, dim=1).T).argmax(1) == test[1]).float().mean())


def digits(resampling: Image.Resampling) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scikit-learn's handwritten digits, enlarged from 8 x 8, three quarters for training."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    grey, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    small = np.rint(grey * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    large = np.stack([np.asarray(Image.fromarray(image).resize((32, 32), resampling)) for image in small])
    images, targets = torch.from_numpy(large).unsqueeze(1).expand(-1, 3, -1, -1), torch.from_numpy(labels)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    return (images[train], targets[train]), (images[test], targets[test])


def rendered(classes: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The stream of glyphs as tensors."""

    def stacked(split: Split) -> tuple[Tensor, Tensor]:
        images = np.stack([np.asarray(split.load(i)) for i in range(len(split))])
        return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(split.labels)

    source = glyphs.glyphs(classes)
    return stacked(source.train), stacked(source.test or source.train)


def check(path: Path) -> None:
    """Print the accuracies of the weights in a file on unseen classes, beside those of random weights."""
    untrained = embedded_backbone()
    initialise(untrained, torch.Generator().manual_seed(0))
    trained = load_backbone(weights=path)
    for name, data in (
        ("digits, bilinear", digits(Image.Resampling.BILINEAR)),
        ("digits, bicubic", digits(Image.Resampling.BICUBIC)),
        ("50 glyphs", rendered(50)),
        ("200 glyphs", rendered(200)),
    ):
        print(
            f"nearest class mean, {name}: {ncm(trained, *data):.4f}; untrained {ncm(untrained, *data):.4f}",
            flush=True,
        )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4500, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="train for this time instead of --steps")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=ASSETS / f"{DEFAULT_BACKBONE}.safetensors")
    parser.add_argument("--check", action="store_true", help="only print the accuracies of the weights in --out")
    parser.add_argument("--characters", action="store_true", help="only select the characters")
    args = parser.parse_args()
    if args.characters:
        (ASSETS / "glyphs.json").write_text(json.dumps(choose_characters(), indent=0) + "\n", encoding="utf-8")
        return
    if not args.check:
        backbone, notes = pretrain(args.steps, args.batch, args.seed, args.minutes, args.lr)
        state = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in backbone.state_dict().items()}
        save_file(state, args.out, notes)
    check(args.out)


if __name__ == "__main__":
    main()
