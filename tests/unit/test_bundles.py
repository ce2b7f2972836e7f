"""Models that hold the weights of their backbone, and weights that are found by their hash."""

from __future__ import annotations

import os
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import save_bert

import ostinato
from ostinato import artifact
from ostinato.backbones import Origin
from ostinato.backbones.weights import bundled_file
from ostinato.errors import DataError, InputError
from ostinato.learner import BackboneSpec, Learner, bundle, way_back


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A folder with weights, and a learner on them that is saved without and with them."""
    root = tmp_path_factory.mktemp("bundles")
    (root / "first").mkdir()
    shutil.copyfile(bundled_file(), root / "first/mine.safetensors")
    stream = ostinato.stream("glyphs", classes=2, step=2, limit_per_class=4)
    learner = Learner("simplecil", weights=str(root / "first/mine.safetensors"), device="cpu")
    learner.learn(stream.task(0))
    learner.save(root / "plain")
    learner.save(root / "whole", bundle=True)
    image = stream.test(0).raw(0)
    return root, image, learner.predict([image], topk=2)[0].scores


@pytest.fixture
def moved(places, monkeypatch, tmp_path):
    """The same, but the weights are gone from their path, and the hub cache is empty."""
    root, image, scores = places
    hidden = root / "hidden"
    (root / "first").rename(hidden)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    yield root, image, scores
    hidden.rename(root / "first")


def scores_of(folder, image):
    return Learner.load(folder, device="cpu").predict([image], topk=2)[0].scores


def test_a_copy_of_a_bundle_predicts_without_the_weights_and_on_a_read_only_disk(moved, tmp_path):
    root, image, scores = moved
    shutil.copytree(root / "whole", tmp_path / "elsewhere/model")
    for path in (tmp_path / "elsewhere").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert scores_of(tmp_path / "elsewhere/model", image) == scores
    finally:
        for path in (tmp_path / "elsewhere").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_missing_weights_name_the_places_and_the_way_out(moved, tmp_path):
    root, _, _ = moved
    with pytest.raises(InputError) as told:
        Learner.load(root / "plain", device="cpu")
    text = str(told.value)
    for place in (root / "first/mine.safetensors", root / "plain", root, tmp_path / "hub", "backbone.weights=PATH"):
        assert str(place) in text


def test_weights_beside_the_artifact_are_found_under_any_name(moved, tmp_path):
    root, image, scores = moved
    shutil.copytree(root / "plain", tmp_path / "model")
    save_file({"other": torch.zeros(2)}, tmp_path / "mine.safetensors")  # the right name, other weights
    with pytest.raises(InputError, match="neither inside"):
        scores_of(tmp_path / "model", image)
    shutil.copyfile(root / "hidden/mine.safetensors", tmp_path / "renamed.safetensors")
    assert scores_of(tmp_path / "model", image) == scores


def test_weights_in_the_hub_cache_are_found(moved, tmp_path):
    root, image, scores = moved
    about = artifact.read_about(root / "plain")
    model = tmp_path / "hub/models--owner--name"
    (model / "blobs").mkdir(parents=True)
    (model / "snapshots/1").mkdir(parents=True)
    shutil.copyfile(root / "hidden/mine.safetensors", model / "blobs" / about.backbone_sha256)
    os.symlink(f"../../blobs/{about.backbone_sha256}", model / "snapshots/1/model.safetensors")
    assert scores_of(root / "plain", image) == scores


def test_a_flipped_byte_anywhere_in_a_bundle_is_refused(places, tmp_path):
    shutil.copytree(places[0] / "whole", tmp_path / "model")
    names = [path for path in sorted((tmp_path / "model").rglob("*")) if path.is_file() and path.name[0] != "."]
    assert any(path.parent.name.startswith("backbone-") for path in names)
    for path in names:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(DataError):
                artifact.read(tmp_path / "model")
        path.write_bytes(whole)
    artifact.read(tmp_path / "model")


def test_a_file_that_is_missing_or_added_in_a_bundle_is_refused(places, tmp_path):
    shutil.copytree(places[0] / "whole", tmp_path / "model")
    held = next((tmp_path / "model").glob("backbone-*"))
    (held / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"but has config\.json too"):
        artifact.read(tmp_path / "model")
    (held / "config.json").unlink()
    next(held.iterdir()).unlink()
    with pytest.raises(DataError, match="cannot be read"):
        artifact.read(tmp_path / "model")


def test_the_weights_of_a_bundle_are_hashed_once_per_load(places, monkeypatch):
    root, image, scores = places
    read = []
    monkeypatch.setattr(artifact, "check_stored", lambda path, sha256: read.append(path))

    def twice(*_):
        raise AssertionError("hashed again")

    for place in ("weights.sha256_of", "weights.digest_of", "timm_weights.sha256_of", "timm_weights.digest_of"):
        monkeypatch.setattr(f"ostinato.backbones.{place}", twice)
    learner = Learner.load(root / "whole", device="cpu")
    assert len(read) == 1
    assert learner.origin.sha256 == artifact.read_about(root / "whole").backbone_sha256
    assert learner.spec.sha256 is None  # the file may change from now on
    assert learner.predict([image], topk=2)[0].scores == scores
    with pytest.raises(AssertionError, match="hashed again"):  # other weights are not known to be right
        Learner.load(root / "whole", device="cpu", weights=str(root / "first/mine.safetensors"))


def test_other_weights_beside_a_bundle_are_refused_with_the_way_out(places, tmp_path):
    other = load_file(bundled_file())
    save_file(other | {"cls_token": other["cls_token"] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"It holds its weights: leave out the others\."):
        Learner.load(places[0] / "whole", device="cpu", weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(DataError, match=r"backbone\.weights=PATH"):
        Learner.load(places[0] / "plain", device="cpu", weights=str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize(
    ("name", "weights", "way"),
    [
        ("vit_tiny_patch16_224.x", "mine.pth", "backbone.weights=PATH."),
        ("vit_mini_patch8_32.glyphs", None, "install the version"),
        ("vit_tiny_patch16_224.x", None, "backbone.weights=original/model.safetensors."),
        ("owner/bert", None, "hf download owner/bert --revision COMMIT --local-dir original"),
        ("owner/bert", None, "backbone.weights=original."),
    ],
)
def test_the_way_back_to_the_original_weights_fits_where_they_come_from(name, weights, way):
    assert way in way_back(Origin(name, weights, "0" * 64))


def test_a_bundled_learner_stays_bundled_and_can_replace_itself(moved, tmp_path):
    root, image, scores = moved
    shutil.copytree(root / "whole", tmp_path / "model")
    learner = Learner.load(tmp_path / "model", device="cpu")
    learner.save(tmp_path / "model")
    learner.save(tmp_path / "other")
    shutil.rmtree(tmp_path / "model")
    assert scores_of(tmp_path / "other", image) == scores
    artifact.copy(tmp_path / "other", tmp_path / "third")
    assert scores_of(tmp_path / "third", image) == scores
    assert not list(tmp_path.rglob("*.part"))


def test_weights_that_changed_are_not_bundled(places, tmp_path):
    root, _, _ = places
    other = load_file(bundled_file())
    save_file(other | {"cls_token": other["cls_token"] + 1}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="changed since the training"):
        bundle(root / "plain", tmp_path / "out", str(tmp_path / "other.safetensors"))
    assert not artifact.exists(tmp_path / "out")
    assert not list(tmp_path.glob("out/backbone-*"))
    bundle(root / "plain", tmp_path / "out")
    assert artifact.read(tmp_path / "out").about.bundle is not None


def test_the_folder_of_a_text_encoder_is_bundled_with_its_tokenizer(tmp_path, monkeypatch):
    folder = save_bert(tmp_path / "bert")
    texts = {"train": [("w1 w2", "a"), ("w3", "b"), ("w1", "a"), ("w4 w3", "b")], "test": [("w1", "a"), ("w3", "b")]}
    (tmp_path / "data").mkdir()
    for split, rows in texts.items():
        (tmp_path / f"data/{split}.csv").write_text("text,label\n" + "".join(f"{t},{c}\n" for t, c in rows))
    learner = Learner("simplecil", backbone=BackboneSpec("bert", str(folder)), device="cpu")
    learner.learn(ostinato.stream(str(tmp_path / "data"), step=2, validation=0).task(0))
    learner.save(tmp_path / "model", bundle=True)
    scores = learner.predict(["w1 w2"], topk=2)[0].scores
    folder.rename(tmp_path / "gone")
    with monkeypatch.context() as patched:
        patched.setattr("ostinato.backbones.weights.digest_of", None)  # the files were verified
        assert Learner.load(tmp_path / "model", device="cpu").predict(["w1 w2"], topk=2)[0].scores == scores
    rules = next((tmp_path / "model").glob("backbone-*/tokenizer.json"))
    rules.write_text(rules.read_text() + " ")
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged"):
        Learner.load(tmp_path / "model", device="cpu")


def test_weights_by_their_name_on_the_hub_are_bundled_under_their_hash(monkeypatch, tmp_path):
    from ostinato.backbones import timm_weights
    from ostinato.backbones.tensors import digest_of

    name = "vit_tiny_patch16_224.augreg_in21k"
    torch.manual_seed(0)
    state = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    monkeypatch.setattr(timm_weights, "_timm_state", lambda *_: (state, digest_of(state)))
    learner = Learner("simplecil", backbone=name, device="cpu")
    stream = ostinato.stream("glyphs", classes=2, step=2, limit_per_class=2)
    learner.learn(stream.task(0))
    learner.save(tmp_path / "model", bundle=True)
    image = stream.test(0).raw(0)
    scores = learner.predict([image], topk=2)[0].scores

    def offline(*_):
        raise InputError("offline")

    monkeypatch.setattr(timm_weights, "_timm_state", offline)
    loaded = Learner.load(tmp_path / "model", device="cpu")
    assert loaded.origin.sha256 == learner.origin.sha256 == digest_of(state)
    assert loaded.predict([image], topk=2)[0].scores == scores
