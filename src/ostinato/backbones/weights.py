"""Frozen backbones by name: the bundled encoder, timm's ViTs, and text and CLIP models of the Hugging Face hub."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from torch import Tensor

from ostinato.backbones.base import Backbone, Origin, check_readout
from ostinato.backbones.encoder import Arch
from ostinato.backbones.tensors import check_finite, digest_of, fitting
from ostinato.backbones.timm_weights import read_weights, timm_backbone
from ostinato.backbones.vision import Preprocess, VisionBackbone, VisionSizes
from ostinato.defaults import DEFAULT_BACKBONE, LARGEST_SIDE
from ostinato.errors import InputError
from ostinato.files import sha256_of
from ostinato.quoting import quoted


def embedded_backbone() -> VisionBackbone:
    """Make the bundled architecture without trained weights: 12 layers, width 128, patch 8, 32 x 32 pixels."""
    arch = Arch(dim=128, depth=12, heads=4, mlp_dim=512)
    return VisionBackbone(arch, patch=8, preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = None,
    preprocess: str = "weights",
    size: int | None = None,
    length: int | None = None,
    readout: str | None = None,
    sizes: VisionSizes | None = None,
    sha256: str | None = None,
) -> Backbone:
    """Load a frozen backbone by name.

    Args:
        name: the bundled ``vit_mini_patch8_32.glyphs``; a plain timm ViT, best with its tag
            (``vit_base_patch16_224.augreg_in21k``): bare names change their meaning between timm releases; or a
            BERT-like text encoder or a CLIP model by its name on the Hugging Face hub. With the folder of one as
            ``weights``, any name.
        weights: a safetensors, pth (read with ``weights_only``) or npz file, or the folder of a text encoder or a CLIP
            model; None fetches them by name.
        preprocess: "weights" uses the mean and std of the weights, "unit" feeds [0, 1] pixels.
        size: input side in pixels, if not that of the weights; position embeddings are resampled.
        length: maximum tokens of a text; None for the default of the weights.
        readout: "cls", "mean" or "cls+mean", see :class:`Backbone`; None for the default of the weights.
        sizes: of the image encoder in the file ``weights``, where known, to avoid asking timm.
        sha256: hash of ``weights``, where the caller has verified them; None to compute it.

    Returns:
        The backbone in fp32, without gradients, in evaluation mode, with its origin.

    Raises:
        InputError: if the name is unknown, the architecture is not supported, or the weights are missing or do not fit.
    """
    if preprocess not in ("weights", "unit"):
        raise InputError(f"preprocess must be 'weights' or 'unit', got {preprocess!r}.")
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise InputError(f"backbone.size must be from 1 to {LARGEST_SIDE} pixels, got {quoted(size)}.")
    if readout is not None:
        check_readout(readout)
    name = name.removeprefix("timm/")  # the hub's prefix of timm's models
    if of_transformers(name, weights):
        backbone, state, digest = _from_transformers(name, None if weights is None else str(weights), length, sha256)
    elif length is not None:
        raise InputError(f"backbone.length is for text encoders, but {name!r} takes images.")
    elif name == DEFAULT_BACKBONE:
        if size not in (None, 32):
            raise InputError(f"backbone.size: {DEFAULT_BACKBONE} takes 32 x 32 pixels only, got {size}.")
        backbone = embedded_backbone()
        path = Path(str(weights)) if weights else bundled_file()
        state, digest = read_weights(path), sha256 or sha256_of(path)
    else:
        backbone, state, digest, name = timm_backbone(name, weights, size, sizes, sha256)
    _load(backbone, state, name)
    backbone.origin = Origin(name, str(weights) if weights else None, digest)
    if not isinstance(backbone, VisionBackbone):
        if size is not None or preprocess != "weights":
            raise InputError(f"backbone.size and preprocess are for images, but {name!r} is a text encoder.")
    elif size not in (None, backbone.preprocess.size):
        raise InputError(f"backbone.size: {name!r} takes {backbone.preprocess.size} pixels only, got {size}.")
    elif preprocess == "unit":
        backbone.preprocess = backbone.preprocess.unit()
        backbone.mean.zero_()
        backbone.std.fill_(1.0)
    backbone.readout = readout or backbone.readout
    return backbone.requires_grad_(False).eval()


def of_transformers(name: str, weights: str | Path | None) -> bool:
    """Whether a backbone is a transformers model: a folder, or a name unlike timm's."""
    if weights is not None:
        return Path(weights).is_dir()
    return "bert" in name.lower() or "MiniLM" in name or "/" in name.removeprefix("timm/")


def known_depth(name: str, weights: str | Path | None) -> int | None:
    """Number of layers of a named backbone without loading its weights; None if it is not known here.

    Raises:
        InputError: if the name or the folder is none of a backbone.
    """
    from ostinato.backbones.hub import read_config
    from ostinato.backbones.timm_weights import timm_depth

    if name == DEFAULT_BACKBONE:
        return embedded_backbone().arch.depth
    if not of_transformers(name, weights):
        return timm_depth(name)
    if weights is None or not Path(weights).is_dir():
        return None  # it would be fetched
    layers = read_config(str(weights)).get("num_hidden_layers")  # CLIP has it per tower
    return layers if isinstance(layers, int) else None


def _from_transformers(
    name: str, weights: str | None, length: int | None, sha256: str | None
) -> tuple[Backbone, dict[str, Tensor], str]:
    """Text encoder or CLIP model without weights, its state dict, and their hash, ``sha256`` where it is known."""
    from ostinato.backbones.clip_weights import KIND, clip_backbone
    from ostinato.backbones.hub import read_config
    from ostinato.backbones.text_weights import text_backbone

    source = name if weights is None else weights
    if read_config(source)["model_type"] == KIND:
        if length is not None:
            raise InputError(f"backbone.length is for text encoders, but {name!r} takes images.")
        backbone, state = clip_backbone(source)
        tokenizer = backbone.text.digest
    else:
        backbone, state = text_backbone(source, length)
        tokenizer = backbone.tokenization.digest
    # The hash includes the tokenizer: another vocabulary gives other inputs for the same texts.
    return backbone, state, sha256 or hashlib.sha256(digest_of(state).encode() + tokenizer.encode()).hexdigest()


def bundled_file() -> Path:
    """Path of the weights that come with ostinato."""
    path = Path(str(resources.files("ostinato"))) / "assets" / f"{DEFAULT_BACKBONE}.safetensors"
    if not path.exists():
        raise InputError(f"The bundled weights are missing at {path}; run scripts/pretrain_glyphs.py or reinstall.")
    return path


def _load(backbone: Backbone, state: Mapping[str, Tensor], name: str) -> None:
    """Load a state dict: every tensor must exist, fit and be finite, and none may be left over."""
    where = f"backbone.weights for {quoted(name)}"
    fitted = fitting(state, {k: tuple(v.shape) for k, v in backbone.state_dict().items()}, where, whole=True)
    check_finite(fitted, where)
    backbone.load_state_dict(fitted)
