"""Reading features out of the states that leave the last layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import ostinato
from ostinato import Learner
from ostinato.backbones.weights import load_backbone
from ostinato.contract.harness import SETTINGS, inputs_of, learn, make, scores
from ostinato.contract.tiny_models import BACKBONES, Kind, random_backbone, random_text_backbone, tiny_stream
from ostinato.errors import InputError
from ostinato.learner import BackboneSpec
from ostinato.lookup import methods
from ostinato.streams import StreamOptions, TaskStream, open_source

METHODS = methods()
SHORT = replace(SETTINGS, overrides={"epochs": 1, "batch_size": 12})
ON_CLIP = ("zero_shot", "clip_pgp")
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in METHODS if name not in ON_CLIP),
    ("l2p", {"pgp": 0.9}),
    ("l2p", {"readout": "cls"}),
    ("soft_tf", {"base": {"name": "l2p", "pgp": 0.9, "pool_size": 6, "top_k": 2}}),
    ("soft_tf", {"base": {"pgp": 0.9}, "task_id": "gradient_id"}),
    ("soft_tf", {"base": "none", "keys": "gaussians", "task_id": "min_entropy"}),
    ("coda_prompt", {"ortho": 0.1}),
    ("layer_grouped", {"fusion": "soft_query"}),
    ("lieprompt", {"query": "frozen", "top_k": 2}),
    ("lieprompt", {"query": "max", "readout": "proto"}),
]


def test_cls_and_mean_are_joined_each_of_length_one() -> None:
    backbone = random_backbone()
    x = inputs_of(tiny_stream())[:5]
    h = backbone.run(backbone.embed(x)).h
    cls, mean = backbone.encoder.norm(h[:, 0]), backbone.encoder.norm(h[:, 1:].mean(1))
    backbone.readout = "cls+mean"
    expected = torch.cat([F.normalize(cls, dim=1), F.normalize(mean, dim=1)], dim=1)
    assert torch.allclose(backbone(x), expected, atol=1e-6)
    assert backbone.dim == 2 * backbone.arch.dim == expected.shape[1]


def test_texts_leave_out_what_fills_them_up() -> None:
    backbone = random_text_backbone()
    backbone.readout = "cls+mean"
    x = inputs_of(tiny_stream("text"))[:6]
    together = backbone(x)
    for i, row in enumerate(x):
        alone = row[row != backbone.tokenization.pad][None]
        h = backbone.run(backbone.embed(alone)).h[0]
        expected = torch.cat([F.normalize(h[0], dim=0), F.normalize(h.mean(0), dim=0)])
        assert torch.allclose(together[i], expected, atol=1e-5)


@pytest.mark.parametrize("readout", ["cls", "mean", "cls+mean"])
@pytest.mark.parametrize("start", [0, 5, 11])
def test_the_last_layer_computes_all_that_is_read(readout: str, start: int) -> None:
    backbone = random_backbone()
    backbone.readout = readout
    x = inputs_of(tiny_stream())[:3]
    tokens = backbone.run(backbone.embed(x), stop=start)
    whole = backbone.pool(backbone.run(backbone.embed(x)))
    assert torch.allclose(backbone.features(tokens, start=start), whole, atol=1e-5)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda value: str(value))
def test_every_method_learns_on_both_parts(name: str, options: dict[str, Any]) -> None:
    kind: Kind = "text" if METHODS[name].needs.__name__ == "TextBackbone" else "image"
    backbone, stream = BACKBONES[kind](depth=6), tiny_stream(kind)
    backbone.readout = "cls+mean"
    method = learn(make(name, kind, backbone, **options), stream, upto=2, settings=SHORT)
    x = inputs_of(stream, upto=2)
    found = scores(method, x)
    assert found.shape == (len(x), 4)
    assert bool(torch.isfinite(found).all())
    other = BACKBONES[kind](depth=6)
    other.readout = "cls+mean"
    loaded = make(name, kind, other, **options)
    loaded.load_learned_state(method.learned_state())
    assert torch.equal(scores(loaded, x), found)


@pytest.mark.parametrize(
    ("name", "options"), [("zero_shot", {}), ("clip_pgp", {}), ("soft_tf", {"base": "clip_pgp"})], ids=str
)
def test_texts_of_classes_are_compared_with_the_cls_token_alone(name: str, options: dict[str, Any]) -> None:
    backbone = BACKBONES["clip"]()
    backbone.readout = "mean"
    with pytest.raises(InputError, match=r"CLS token.*backbone\.readout must be 'cls', got 'mean'"):
        make(name, "clip", backbone, **options)


def test_the_readout_is_chosen_by_name() -> None:
    own, both = load_backbone(), load_backbone(readout="cls+mean")
    assert (own.readout, own.dim) == ("cls", 128)
    assert (both.readout, both.dim) == ("cls+mean", 256)
    assert both.describe()["readout"] == "cls+mean"
    assert own.settings() != both.settings()
    with pytest.raises(InputError, match=r"backbone\.readout must be one of .*'cls\+mean'.*got 'max'"):
        load_backbone(readout="max")


def saved_and_loaded(method: str, spec: BackboneSpec, folder: Path) -> tuple[Learner, Learner, Tensor]:
    """A learner of five digits, the same one loaded from its folder, and images (4, 3, 32, 32)."""
    learner = Learner(method, backbone=spec)
    learner.learn(TaskStream(open_source("digits"), StreamOptions(step=5, limit_per_class=4)).task(0))
    learner.save(folder)
    return learner, Learner.load(folder), torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


def test_an_artifact_keeps_its_readout(tmp_path: Path) -> None:
    learner, loaded, x = saved_and_loaded("simplecil", BackboneSpec(readout="mean"), tmp_path / "saved")
    assert loaded.method.backbone.readout == "mean"
    assert torch.equal(loaded.scores(x), learner.scores(x))
    plain, _, _ = saved_and_loaded("simplecil", BackboneSpec(), tmp_path / "plain")
    assert not torch.allclose(plain.scores(x), learner.scores(x))


def test_an_artifact_of_a_weights_file_keeps_its_readout(tmp_path: Path) -> None:
    """It records the sizes of the encoder beside the read-out that was chosen."""
    weights = Path(ostinato.__file__).parent / "assets/vit_mini_patch8_32.glyphs.safetensors"
    spec = BackboneSpec(weights=str(weights), readout="cls+mean")
    learner, loaded, x = saved_and_loaded("slda", spec, tmp_path / "saved")
    assert loaded.method.backbone.readout == "cls+mean"
    assert torch.equal(loaded.scores(x), learner.scores(x))
