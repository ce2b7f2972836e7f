"""Our two towers give what transformers gives for CLIP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import save_clip
from torch.nn import functional as F
from transformers import CLIPModel

from ostinato.backbones import ClipBackbone
from ostinato.backbones.weights import load_backbone
from ostinato.errors import InputError

TEXTS = ["a photo of a cat.", "cat", "a much longer text of 33 letters"]


def load(folder: Path) -> ClipBackbone:
    backbone = load_backbone("tiny", weights=folder)
    assert isinstance(backbone, ClipBackbone)
    return backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def ours(folder) -> ClipBackbone:
    return load(folder)


@pytest.fixture(scope="module")
def theirs(folder) -> CLIPModel:
    return CLIPModel.from_pretrained(folder).eval()


def images() -> torch.Tensor:
    return torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def normalised(ours: ClipBackbone) -> torch.Tensor:
    """What transformers expects: our backbone normalises itself."""
    return (images() - ours.mean) / ours.std


@torch.no_grad()
def test_image_states_and_features_match(ours, theirs):
    want = theirs.vision_model(normalised(ours))
    torch.testing.assert_close(ours.run(ours.embed(images())).h, want.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours(images()), want.pooler_output, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texts_match_whatever_stands_beside_them(ours, theirs):
    """The read token is the end of each text; what fills up comes after it."""
    ids = ours.text.ids(TEXTS)
    assert ids.shape == (3, 34)
    want = theirs.text_model(input_ids=ids).pooler_output
    want = F.normalize(theirs.text_projection(want), dim=-1)
    torch.testing.assert_close(ours.text(ids), want, atol=1e-5, rtol=1e-5)
    for text, row in zip(TEXTS, want, strict=True):
        torch.testing.assert_close(ours.text(ours.text.ids([text]))[0], row, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_logits_match(ours, theirs):
    ids = ours.text.ids(TEXTS)
    want = theirs(input_ids=ids, pixel_values=normalised(ours)).logits_per_image
    got = ours.scale * ours.joint(ours(images())) @ ours.text(ids).mT
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)


@torch.no_grad()
def test_context_is_what_its_words_would_be(ours):
    """Vectors equal to those of words give the features of the text with these words."""
    whole, rest = ours.text.ids(["a cat."]), ours.text.ids(["cat."], room=2)
    context = ours.text.words(whole[0, 1:3])
    torch.testing.assert_close(ours.text(rest, context), ours.text(whole), atol=1e-6, rtol=1e-5)


def test_a_text_that_is_too_long_is_refused(ours):
    assert ours.text.ids(["x" * 38]).shape == (1, 40)
    with pytest.raises(InputError, match=r"reads at most 40 tokens, but 'x+' has 41: give the class a shorter name"):
        ours.text.ids(["x" * 39])
    with pytest.raises(InputError, match="reads at most 24 tokens"):
        ours.text.ids(["x" * 30], room=16)


def test_normalisation_is_the_models_own(folder, ours):
    assert ours.preprocess.size == 8
    assert ours.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.1] * 3, "image_std": [0.2] * 3}))
    try:
        assert load(folder).preprocess.mean == (0.1, 0.1, 0.1)
    finally:
        (folder / "preprocessor_config.json").unlink()


def test_another_activation_is_refused(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "swish"
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="activation 'swish'"):
        load(tmp_path)
