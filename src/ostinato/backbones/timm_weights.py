"""Vision transformers by timm's names, and checkpoints in timm's format.

timm supplies names, sizes, preprocessing and weights from its hub; the encoder is ours. timm is imported only to look a
name up, since the import takes longer than everything else before a prediction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones.encoder import ACTIVATIONS, Arch
from ostinato.backbones.npz import load_npz
from ostinato.backbones.tensors import digest_of, fitting, read_tensors
from ostinato.backbones.vision import Preprocess, VisionBackbone, VisionSizes
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.errors import InputError, did_you_mean
from ostinato.files import sha256_of
from ostinato.quoting import quoted

_BY_VALUES = {"ostinato": "sha256 of the values"}
"""Metadata of a file that is known by the hash of its values."""

_HUB_FILE = "model.safetensors"
"""File of the weights in timm's repositories."""

_PATIENCE = 5.0
"""Seconds to wait for the hub where the weights are not necessary."""

_PREFIXES = ("module.", "backbone.", "encoder.", "model.")


def timm_backbone(
    name: str, weights: str | Path | None, size: int | None, sizes: VisionSizes | None, sha256: str | None
) -> tuple[VisionBackbone, dict[str, Tensor], str, str]:
    """Make a backbone of a timm name without weights; arguments as in :func:`ostinato.backbones.weights.load_backbone`.

    Returns:
        The backbone, its state dict, the hash of the weights and the full name.

    Raises:
        InputError: if the name is unknown, the architecture is not supported, or the weights are missing or do not fit.
    """
    full = name
    state = None if weights is None or Path(weights).suffix == ".npz" else read_weights(Path(weights))
    if sizes is None or state is None:
        sizes, full = _look_up(name, size)
    else:
        _check_sizes(sizes, state, name)
    backbone = VisionBackbone(sizes.arch, patch=sizes.patch, preprocess=sizes.preprocess, readout=sizes.readout)
    if state is None:
        state, digest = _timm_state(full, weights, sha256)
    else:
        digest = sha256 or _digest_of_file(Path(str(weights)), state)
    return backbone, convert_timm(state, backbone), digest, full


def _check_sizes(sizes: VisionSizes, state: Mapping[str, Tensor], name: str) -> None:
    """Check that a file holds an encoder of these sizes before it is built, which could take any memory."""
    arch, last = sizes.arch, f"blocks.{sizes.arch.depth - 1}"
    fitting(
        state,
        {
            "patch_embed.proj.weight": (arch.dim, 3, sizes.patch, sizes.patch),
            f"{last}.mlp.fc1.weight": (arch.mlp_dim, arch.dim),
        },
        f"backbone.weights for {quoted(name)}",
    )


def _look_up(name: str, size: int | None) -> tuple[VisionSizes, str]:
    """Look up sizes and full name of a timm encoder, which must be one that our encoder computes."""
    import timm
    from timm.models.vision_transformer import VisionTransformer

    # timm would load a model from the address that a name with a colon means.
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(name.split(".")[0]):
        hint = did_you_mean(name, [*timm.list_models("vit_*"), DEFAULT_BACKBONE])
        hint = "Its ViTs are timm.list_models('vit_*')." if hint.startswith("Known") else hint  # many hundreds
        raise InputError(f"backbone: timm knows no model {quoted(name)}. {hint}")
    model = _skeleton(name)
    if not isinstance(model, VisionTransformer):
        raise InputError(f"backbone: {name!r} must be a plain ViT (vit_*_patch*); it is a {type(model).__name__}.")
    if size:
        model = _skeleton(name, img_size=size)
    cfg: dict[str, Any] = model.pretrained_cfg  # pyright: ignore[reportAssignmentType]
    if "." not in name and cfg.get("tag"):
        name = f"{name}.{cfg['tag']}"
    preprocess = Preprocess(
        int(model.patch_embed.img_size[0]), tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"]
    )
    readout = "cls" if model.global_pool == "token" else "mean"
    return VisionSizes(_arch(model, name), int(model.patch_embed.patch_size[0]), preprocess, readout), name


def timm_depth(name: str) -> int:
    """Number of layers of a timm encoder; raises InputError if the name is unknown."""
    return _look_up(name.removeprefix("timm/"), None)[0].arch.depth


def _skeleton(name: str, **options: Any) -> Any:
    """Make a timm model without head and weights, which takes no memory."""
    import timm

    try:
        with torch.device("meta"):
            return timm.create_model(name, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        raise InputError(f"backbone: timm cannot make {name!r} ({error}). Check the tag after the dot.") from error


def _timm_state(name: str, weights: str | Path | None, sha256: str | None = None) -> tuple[dict[str, Tensor], str]:
    """State dict and hash, read by timm at the weights' own size: an npz file, or the named weights from the hub.

    ``sha256`` is the hash of the file, where it is known.
    """
    import timm

    if weights is not None:
        path = Path(weights)
        model: Any = timm.create_model(name, pretrained=False, num_classes=0)
        load_npz(path, model)
        return model.state_dict(), sha256 or sha256_of(path)
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise InputError(
            f"backbone: the weights of {name!r} could not be fetched ({type(error).__name__}). With a network, run "
            f"once: hf download timm/{name}"
        ) from error
    state = model.state_dict()
    return state, digest_of(state)


def cached(name: str) -> bool:
    """Whether the weights of a full name of timm are in the hub's cache on this machine."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(f"timm/{name}", _HUB_FILE), str)


def download(name: str) -> bool:
    """Download the weights of a full name of timm into the hub's cache; return False if the hub cannot be reached."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        HfApi().model_info(f"timm/{name}", timeout=_PATIENCE)  # a download would try for half a minute
        hf_hub_download(f"timm/{name}", _HUB_FILE)  # nosec B615  # a name of this package
    except (errors.HTTPError, OSError):  # pyright: ignore[reportPrivateImportUsage]  # OSError: also no space, no right
        return False
    return True


def write_fetched(name: str, path: Path) -> None:
    """Write the weights that a name means on timm's hub into a safetensors file, which loads with the same hash."""
    state, _ = _timm_state(name, None)
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata=_BY_VALUES)


def _digest_of_file(path: Path, state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a file; of its values if :func:`write_fetched` made it, since the hub's weights are hashed so."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            if file.metadata() == _BY_VALUES:
                return digest_of(state)
    return sha256_of(path)


def _arch(model: Any, name: str) -> Arch:
    """Sizes of a timm ViT, all of whose parts must be ones that our encoder computes."""
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
    if found := [part for part, present in unsupported.items() if present]:
        raise InputError(f"backbone: {name!r} must be a plain ViT to run in our encoder; it has {', '.join(found)}.")
    act = {"GELU": "gelu", "QuickGELU": "quick_gelu", "ReLU": "relu"}.get(type(block.mlp.act).__name__)
    if act not in ACTIVATIONS:
        activation = type(block.mlp.act).__name__
        raise InputError(f"backbone: {name!r} must have an activation of {sorted(ACTIVATIONS)}, not {activation}.")
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
    """Convert the tensors of a timm ViT to our names, without its classification head.

    Positions are resampled where the input size of the backbone differs; other tensors stay as they are.
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
        out["pos_embed"] = _resampled(pos.float(), backbone.preprocess.size // backbone.patch)
    return out


def _resampled(pos: Tensor, side: int) -> Tensor:
    """Resample positions (1, 1 + n * n, D) for ``side`` x ``side`` patches, as timm does."""
    n = math.isqrt(pos.shape[1] - 1)
    grid = pos[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    return torch.cat([pos[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _is_square(pos: Tensor, dim: int) -> bool:
    """Whether ``pos`` is a floating-point tensor (1, 1 + n * n, D)."""
    if pos.ndim != 3 or pos.shape[0] != 1 or pos.shape[2] != dim or not pos.is_floating_point():
        return False
    n = pos.shape[1] - 1
    return n > 0 and math.isqrt(n) ** 2 == n


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors or pth file, without the usual containers and prefixes.

    Raises:
        InputError: if the file is missing, has another format, or is not a mapping of tensors.
    """
    state = read_tensors(path)
    for prefix in _PREFIXES:
        if state and f"{prefix}patch_embed.proj.weight" in state:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return state
