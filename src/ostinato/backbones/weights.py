"""Pre-trained weights: timm checkpoints and the bundled default, converted to :class:`VisionBackbone`.

Text encoders are in ``text_weights.py``, CLIP models in ``clip_weights.py``. timm supplies architectures' names,
weights and pre-processing; the transformer that runs is ours. Parity with timm's own forward is tested in
``tests/golden/test_timm_parity.py``.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ostinato.backbones.base import Backbone, Origin
from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.npz import load_npz
from ostinato.backbones.tensors import check_finite, fitting, read_tensors
from ostinato.backbones.vision import Preprocess, VisionBackbone
from ostinato.config import DEFAULT_BACKBONE, LARGEST_SIDE
from ostinato.errors import InputError, did_you_mean
from ostinato.files import sha256_of
from ostinato.quoting import quoted

_PREFIXES = ("module.", "backbone.", "encoder.", "model.")


def embedded_backbone() -> VisionBackbone:
    """The bundled architecture with untrained weights: 12 layers, width 128, patch 8, 32 x 32 pixels."""
    arch = Arch(dim=128, depth=12, heads=4, mlp_dim=512)
    return VisionBackbone(arch, patch=8, preprocess=Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = None,
    preprocess: str = "weights",
    size: int | None = None,
    length: int | None = None,
) -> Backbone:
    """A frozen backbone by name.

    Args:
        name: the bundled ``vit_mini_patch8_32.glyphs``; a plain timm ViT, best with its tag
            (``vit_base_patch16_224.augreg_in21k``): bare names change their meaning between timm releases; or a
            BERT-like text encoder or a CLIP model by its name on the Hugging Face hub. With the folder of one as
            ``weights``, any name.
        weights: a safetensors, pth (read with ``weights_only``) or npz file, or the folder of a text encoder or a CLIP
            model; None fetches them by name.
        preprocess: "weights" uses the mean and std of the weights, "unit" feeds [0, 1] pixels.
        size: input side in pixels other than the weights' own; position embeddings are resampled.
        length: most tokens of a text; None for what suits the weights.

    Returns:
        The backbone in fp32, without gradients, in evaluation mode, with its origin.

    Raises:
        InputError: unknown name, unsupported architecture, missing or unfitting weights.
    """
    if preprocess not in ("weights", "unit"):
        raise InputError(f"preprocess must be 'weights' or 'unit', got {preprocess!r}.")
    if size is not None and not 1 <= size <= LARGEST_SIDE:
        raise InputError(f"backbone.size must be from 1 to {LARGEST_SIDE} pixels, got {quoted(size)}.")
    name = name.removeprefix("timm/")  # as the hub calls timm's models
    if of_transformers(name, weights):
        backbone, state, digest = _from_transformers(name, None if weights is None else str(weights), length)
    elif length is not None:
        raise InputError(f"backbone.length is for text encoders, but {name!r} takes images.")
    elif name == DEFAULT_BACKBONE:
        if size not in (None, 32):
            raise InputError(f"backbone.size: {DEFAULT_BACKBONE} takes 32 x 32 pixels only, got {size}.")
        backbone = embedded_backbone()
        path = Path(str(weights)) if weights else _asset()
        state, digest = read_weights(path), sha256_of(path)
    else:
        backbone, state, digest, name = _from_timm(name, weights, size)
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
    return backbone.requires_grad_(False).eval()


def of_transformers(name: str, weights: str | Path | None) -> bool:
    """Whether a backbone is a model of the transformers library: a folder, or a name that is none of timm's."""
    if weights is not None:
        return Path(weights).is_dir()
    return "bert" in name.lower() or "MiniLM" in name or "/" in name.removeprefix("timm/")


def _from_transformers(name: str, weights: str | None, length: int | None) -> tuple[Backbone, dict[str, Tensor], str]:
    """A text encoder or a CLIP model without weights, our state dict, and its hash."""
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
    # Another vocabulary makes other inputs of the same texts: it belongs to what the weights are.
    return backbone, state, hashlib.sha256(_digest(state).encode() + tokenizer.encode()).hexdigest()


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(key.encode() + state[key].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _asset() -> Path:
    """Path of the bundled weights."""
    path = Path(str(resources.files("ostinato"))) / "assets" / f"{DEFAULT_BACKBONE}.safetensors"
    if not path.exists():
        raise InputError(f"The bundled weights are missing at {path}; run scripts/pretrain_glyphs.py or reinstall.")
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or pth file, unwrapped from the usual containers and prefixes.

    Args:
        path: the file; pth, pt and bin are read with ``weights_only``, so they cannot run code.

    Returns:
        Name to tensor.

    Raises:
        InputError: if the file is missing, of another kind, or not a mapping of tensors.
    """
    state = read_tensors(path)
    for prefix in _PREFIXES:
        if state and f"{prefix}patch_embed.proj.weight" in state:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state


def _from_timm(
    name: str, weights: str | Path | None, size: int | None
) -> tuple[VisionBackbone, dict[str, Tensor], str, str]:
    """Backbone without weights, our state dict, its hash and the full name, for a timm name."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    # A name with a colon would be taken for an address of a model that is loaded from there.
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(name.split(".")[0]):
        hint = did_you_mean(name, [*timm.list_models("vit_*"), DEFAULT_BACKBONE])
        hint = "Its ViTs are timm.list_models('vit_*')." if hint.startswith("Known") else hint  # many hundreds
        raise InputError(f"backbone: timm knows no model {quoted(name)}. {hint}")
    model = _skeleton(name)
    if not isinstance(model, VisionTransformer):
        raise InputError(f"backbone: {name!r} is a {type(model).__name__}; a plain ViT (vit_*_patch*) is needed.")
    if size:
        model = _skeleton(name, img_size=size)
    cfg: dict[str, Any] = model.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    if "." not in name and cfg.get("tag"):
        name = f"{name}.{cfg['tag']}"
    backbone = VisionBackbone(
        _arch(model, name),
        patch=int(model.patch_embed.patch_size[0]),
        preprocess=Preprocess(
            int(model.patch_embed.img_size[0]), tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"]
        ),
        readout="cls" if model.global_pool == "token" else "mean",
    )
    if weights is not None and Path(weights).suffix != ".npz":
        state = read_weights(Path(weights))
        digest = sha256_of(Path(weights))
    else:
        state, digest = _timm_state(name, weights)
    return backbone, convert_timm(state, backbone), digest, name


def _skeleton(name: str, **options: Any) -> Any:
    """A model of timm without head and without weights, which takes no memory.

    Raises:
        InputError: if timm knows no such tag.
    """
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise InputError(f"backbone: timm cannot make {name!r} ({error}). Check the tag after the dot.") from error


def _timm_state(name: str, weights: str | Path | None) -> tuple[dict[str, Tensor], str]:
    """State dict read by timm itself, at the weights' own size: an npz file, or the named weights from the hub."""
    import timm

    if weights is not None:
        path = Path(weights)
        model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        load_npz(path, model)
        return model.state_dict(), sha256_of(path)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise InputError(
            f"backbone: the weights of {name!r} could not be fetched ({type(error).__name__}). Connect to the "
            "network, or download them once and give backbone.weights=FILE."
        ) from error
    state = model.state_dict()
    return state, _digest(state)


def _arch(model: Any, name: str) -> Arch:
    """Sizes of a timm ViT.

    Raises:
        InputError: if it has a part that our encoder does not compute.
    """
    block = model.blocks[0]
    identity = (nn.Identity, type(None))
    unsupported = {
        "no CLS token": model.cls_token is None,
        "register or distillation tokens": model.num_prefix_tokens != 1,
        "no absolute position embedding": model.pos_embed is None,
        "positions without the CLS token": getattr(model, "no_embed_class", False),
        "a norm before the blocks": not isinstance(model.norm_pre, identity),
        "attention pooling": getattr(model, "attn_pool", None) is not None,
        "query-key norm": not isinstance(block.attn.q_norm, identity),
        "a norm inside attention": not isinstance(getattr(block.attn, "norm", None), identity),
        "a gated MLP": type(block.mlp).__name__ != "Mlp",
        "another kind of block": type(block).__name__ != "Block",
        "a patch embedding without bias": model.patch_embed.proj.bias is None,
        f"{model.global_pool!r} pooling": model.global_pool not in ("token", "avg"),
        "non-square patches or images": len(set(model.patch_embed.patch_size)) > 1
        or len(set(model.patch_embed.img_size)) > 1,
    }
    if found := [what for what, present in unsupported.items() if present]:
        raise InputError(f"backbone: {name!r} has {', '.join(found)}; only plain ViTs run in our encoder.")
    act = {"GELU": "gelu", "QuickGELU": "quick_gelu", "ReLU": "relu"}.get(type(block.mlp.act).__name__)
    if act not in ACTIVATIONS:
        raise InputError(f"backbone: {name!r} uses the activation {type(block.mlp.act).__name__}, unknown here.")
    return Arch(
        dim=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_dim=block.mlp.fc1.out_features,
        eps=block.norm1.eps,
        act=act,
        qkv_bias=block.attn.qkv.bias is not None,
        layer_scale=hasattr(block.ls1, "gamma"),
    )


def convert_timm(state: Mapping[str, Tensor], backbone: VisionBackbone) -> dict[str, Tensor]:
    """Our names for the tensors of a timm ViT; its classification head is left out.

    Args:
        state: timm's names to tensors.
        backbone: the target; its size decides whether position embeddings are resampled.

    Returns:
        Tensors under our names, as they were but for the positions.
    """
    out: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith("head.") or key.startswith("pre_logits."):
            continue
        if key.startswith("patch_embed.proj."):
            key = key.replace("patch_embed.proj.", "patch_embed.")
        elif key.startswith("blocks."):
            key = f"encoder.{key}"
        elif key.startswith(("norm.", "fc_norm.")):
            key = f"encoder.norm.{key.rsplit('.', 1)[1]}"
        out[key] = value
    pos = out.get("pos_embed")
    if pos is not None and _is_square(pos, backbone.dim) and pos.shape[1] != backbone.pos_embed.shape[1]:
        from timm.layers import resample_abs_pos_embed  # pyright: ignore[reportPrivateImportUsage]

        side = backbone.preprocess.size // backbone.patch
        out["pos_embed"] = resample_abs_pos_embed(pos.float(), [side, side], num_prefix_tokens=1)
    return out


def _is_square(pos: Tensor, dim: int) -> bool:
    """Whether these are floating-point positions (1, 1 + n * n, D)."""
    if pos.ndim != 3 or pos.shape[0] != 1 or pos.shape[2] != dim or not pos.is_floating_point():
        return False
    n = pos.shape[1] - 1
    return n > 0 and math.isqrt(n) ** 2 == n


def _load(backbone: Backbone, state: Mapping[str, Tensor], name: str) -> None:
    """Fill a backbone; every tensor must be there, fit and be finite, and nothing may be left over.

    Raises:
        InputError: naming the tensors that are not.
    """
    where = f"backbone.weights for {quoted(name)}"
    fitted = fitting(state, {k: tuple(v.shape) for k, v in backbone.state_dict().items()}, where, whole=True)
    check_finite(fitted, where)
    backbone.load_state_dict(fitted)
