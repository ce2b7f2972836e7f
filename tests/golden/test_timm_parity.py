"""Our encoder against timm's own forward, in fp32."""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from tests.conftest import VIT_TI_NAME
from timm.models.vision_transformer import VisionTransformer

from ostinato.backbones import Arch, Preprocess, VisionBackbone
from ostinato.backbones.timm_weights import convert_timm
from ostinato.backbones.weights import load_backbone
from ostinato.errors import InputError

TINY = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=0)


def randomise(model):
    gen = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=gen) * 0.3 + (1.0 if p.ndim == 1 else 0.0)
    return model.eval()


def ours(model, **arch):
    sizes = dict(dim=24, depth=3, heads=3, mlp_dim=96) | arch
    readout = "cls" if model.global_pool == "token" else "mean"
    backbone = VisionBackbone(
        Arch(**sizes), patch=8, preprocess=Preprocess(32, (0.0,) * 3, (1.0,) * 3), readout=readout
    )
    backbone.load_state_dict(convert_timm(model.state_dict(), backbone))
    return backbone.eval()


@pytest.mark.parametrize(
    ("options", "arch"),
    [
        ({}, {}),
        ({"qkv_bias": False}, {"qkv_bias": False}),
        ({"init_values": 0.1}, {"layer_scale": True}),
        ({"mlp_ratio": 2}, {"mlp_dim": 48}),
        ({"global_pool": "avg"}, {}),
    ],
)
def test_tiny_vits_match(options, arch):
    model = randomise(VisionTransformer(**TINY, **options))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(model, **arch)(x), model(x), atol=1e-5, rtol=1e-5)


def test_a_changed_weight_is_noticed():
    model = randomise(VisionTransformer(**TINY))
    x = torch.rand(2, 3, 32, 32)
    mine = ours(model)
    mine.encoder.blocks[1].mlp.fc1.bias.data[0] += 0.5
    with torch.no_grad():
        assert (mine(x) - model(x)).abs().max() > 1e-4


def test_upstream_test_model_by_name_and_file(tmp_path):
    """timm's own tiny test architecture, from a safetensors and from a pth file."""
    model = randomise(timm.create_model("vit_tiny_patch16_224.augreg_in21k", pretrained=False, img_size=64))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "w.pth")
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        want = model.forward_head(model.forward_features((x / 255 - 0.5) / 0.5), pre_logits=True)
        for file in ("w.safetensors", "w.pth"):
            mine = load_backbone("vit_tiny_patch16_224.augreg_in21k", weights=tmp_path / file, size=64)
            torch.testing.assert_close(mine(x), want, atol=1e-4, rtol=1e-5)


def test_real_weights_match(vit_ti):
    model = timm.create_model(VIT_TI_NAME, pretrained=False, checkpoint_path=str(vit_ti)).eval()
    mine = load_backbone(VIT_TI_NAME, weights=vit_ti)
    x = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model.forward_head(model.forward_features((x / 255 - 0.5) / 0.5), pre_logits=True)
        assert (mine(x) - want).abs().max() < 1e-5
    assert mine.preprocess.mean == (0.5, 0.5, 0.5)
    assert mine.preprocess.interpolation == "bicubic"


def test_size_resamples_positions(vit_ti):
    mine = load_backbone(VIT_TI_NAME, weights=vit_ti, size=96)
    assert mine.pos_embed.shape == (1, 37, 192)


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch16_224.augreg_in21k", "vit_base_patch32_224.augreg_in21k", "vit_base_patch8_224.dino",
        "vit_base_patch16_224.sam_in1k", "vit_large_patch16_224.augreg_in21k", "vit_small_patch16_224.dino",
    ],
)  # fmt: skip
def test_named_architectures_are_supported(name):
    """Sizes are read off timm without weights; fetching them needs a network."""
    from ostinato.backbones.timm_weights import _arch

    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, num_classes=0)
    arch = _arch(model, name)
    with torch.device("meta"):
        backbone = VisionBackbone(
            arch, patch=model.patch_embed.patch_size[0], preprocess=Preprocess(224, (0,) * 3, (1,) * 3)
        )
    n = sum(p.numel() for p in backbone.parameters())
    assert n == sum(p.numel() for p in model.parameters())


def test_google_npz(tmp_path):
    """The original JAX layout, as in the file ViT-B_16.npz."""
    model = randomise(VisionTransformer(**TINY))
    arrays = {
        "embedding/kernel": model.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": model.patch_embed.proj.bias,
        "cls": model.cls_token,
        "Transformer/posembed_input/pos_embedding": model.pos_embed,
        "Transformer/encoder_norm/scale": model.norm.weight,
        "Transformer/encoder_norm/bias": model.norm.bias,
    }
    for i, b in enumerate(model.blocks):
        at = f"Transformer/encoderblock_{i}"
        arrays |= {f"{at}/LayerNorm_0/scale": b.norm1.weight, f"{at}/LayerNorm_0/bias": b.norm1.bias}
        arrays |= {f"{at}/LayerNorm_2/scale": b.norm2.weight, f"{at}/LayerNorm_2/bias": b.norm2.bias}
        for n, w, c in zip(
            ("query", "key", "value"), b.attn.qkv.weight.chunk(3), b.attn.qkv.bias.chunk(3), strict=True
        ):
            arrays[f"{at}/MultiHeadDotProductAttention_1/{n}/kernel"] = w.T.reshape(24, 3, 8)
            arrays[f"{at}/MultiHeadDotProductAttention_1/{n}/bias"] = c.reshape(3, 8)
        arrays[f"{at}/MultiHeadDotProductAttention_1/out/kernel"] = b.attn.proj.weight.T.reshape(3, 8, 24)
        arrays[f"{at}/MultiHeadDotProductAttention_1/out/bias"] = b.attn.proj.bias
        for j, fc in enumerate((b.mlp.fc1, b.mlp.fc2)):
            arrays[f"{at}/MlpBlock_3/Dense_{j}/kernel"] = fc.weight.T
            arrays[f"{at}/MlpBlock_3/Dense_{j}/bias"] = fc.bias
    np.savez(tmp_path / "w.npz", **{k: v.detach().numpy() for k, v in arrays.items()})
    twin = VisionTransformer(**TINY)
    twin.load_pretrained(str(tmp_path / "w.npz"))
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours(twin)(x), model.eval()(x), atol=1e-4, rtol=1e-4)


def test_errors_say_what_to_do(tmp_path):
    with pytest.raises(InputError, match="Did you mean 'vit_tiny_patch16_224'"):
        load_backbone("vit_tiny_patch16_22")
    with pytest.raises(InputError, match="plain ViT"):
        load_backbone("resnet18")
    with pytest.raises(InputError, match="no file at"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k", weights=tmp_path / "none.safetensors")
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="cannot be read"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k", weights=tmp_path / "bad.pth")
    save_file({"patch_embed.proj.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="missing"):
        load_backbone("vit_tiny_patch16_224.augreg_in21k", weights=tmp_path / "other.safetensors")
