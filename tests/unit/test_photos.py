"""A run on photos finds its backbone, says how it goes without a terminal, and remarks on its samples."""

from __future__ import annotations

import io
import json

import pytest
from tests.cli.command import ostinato as command
from tests.conftest import BLUE, GREEN, RED, photos

from ostinato.backbones.timm_weights import cached, download
from ostinato.config import build_config
from ostinato.defaults import DEFAULT_BACKBONE, PHOTO_BACKBONES
from ostinato.distributed import SINGLE_PROCESS
from ostinato.report.console import ConsoleReporter, PlainConsole
from ostinato.runs.balance import remarks
from ostinato.runs.photos import with_photo_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    photos(root / "photos", {"red": RED, "green": GREEN}, n=10)
    photos(root / "photos", {"blue": BLUE}, n=3)
    return root / "photos"


def chosen(monkeypatch, data, here=(), online=False, **options):
    """Name of the backbone of a run, what was said, and what was downloaded."""
    said, fetched = [], []
    monkeypatch.setattr("ostinato.runs.photos.cached", lambda name: name in here)
    monkeypatch.setattr("ostinato.runs.photos.download", lambda name: fetched.append(name) or online)
    config = build_config({"method": {"name": "simplecil"}, "data": {"path": str(data)}}, options)
    return with_photo_backbone(config, said.append, SINGLE_PROCESS).backbone.name, " ".join(said), fetched


def test_a_backbone_for_photos_comes_from_the_cache_or_the_hub(folder, monkeypatch):
    small, base, _ = PHOTO_BACKBONES
    name, said, fetched = chosen(monkeypatch, folder, here=(base,), online=True)
    assert (name, fetched) == (base, [])
    assert f"Backbone: {base}" in said
    name, said, fetched = chosen(monkeypatch, folder, online=True)
    assert (name, fetched) == (small, [small])
    assert "downloaded once" in said
    name, said, fetched = chosen(monkeypatch, folder)
    assert (name, fetched) == (DEFAULT_BACKBONE, [small])
    assert f"run once: hf download timm/{small}" in said


@pytest.mark.parametrize(
    "backbone", [{"name": "vit_tiny_patch16_224.augreg_in21k"}, {"name": DEFAULT_BACKBONE}, {"weights": "mine.pth"}]
)
def test_a_backbone_that_is_named_is_taken(folder, monkeypatch, backbone):
    name, said, fetched = chosen(monkeypatch, folder, PHOTO_BACKBONES, online=True, backbone=backbone)
    assert (name, said, fetched) == (backbone.get("name", DEFAULT_BACKBONE), "", [])


@pytest.mark.parametrize("data", ["digits", "glyphs", "hub:owner/name"])
def test_other_data_keep_the_default(monkeypatch, data):
    assert chosen(monkeypatch, data, PHOTO_BACKBONES, online=True) == (DEFAULT_BACKBONE, "", [])


def test_the_cache_of_the_hub_is_asked_and_no_network_is_no_error(monkeypatch, tmp_path):
    name = PHOTO_BACKBONES[0]
    assert not cached(name)
    assert not download(name)
    model = tmp_path / f"models--timm--{name}"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("1")
    (model / "snapshots/1").mkdir(parents=True)
    (model / "snapshots/1/model.safetensors").write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached(name)


def test_remarks_name_uneven_classes_and_those_without_test_samples():
    assert not list(remarks({"a": 4, "b": 11}, {"a": 1, "b": 1}, "image"))
    (line,) = remarks({"a": 4, "b": 12}, {"a": 1, "b": 1}, "image")
    assert line.startswith("Classes are uneven: from 4 training images (a) to 12 (b).")
    (line,) = remarks({}, {"a": 0, "b": 1, "c": 0}, "text")
    assert line == "No test texts of a, c: the accuracy says nothing about these classes."
    (line,) = remarks({}, {str(i): 0 for i in range(30)}, "text")
    assert line.count(", ") < 29
    assert " more:" in line


def test_a_run_on_photos_says_what_is_missing_and_remarks_on_its_samples(folder, tmp_path):
    said = " ".join(command("run", "simplecil", f"data={folder}", f"out={tmp_path / 'r'}").stdout.split())
    assert f"run once: hf download timm/{PHOTO_BACKBONES[0]}" in said
    assert f"add backbone={PHOTO_BACKBONES[0]}" in said
    remark = "Classes are uneven: from 1 training images (blue) to"
    assert remark in said
    assert remark in json.loads((tmp_path / "r/summary.json").read_text())["remarks"][0]
    assert remark in " ".join(command("report", tmp_path / "r").stdout.split())
    photos(tmp_path / "more", {"white": (240, 240, 240)}, n=4)
    said = " ".join(command("learn", tmp_path / "r", f"data={tmp_path / 'more'}", "data.validation=0").stdout.split())
    assert ("No test images of white:" in said) == ("New classes:" not in said)


def progress_of(every, total=8, **kind):
    console = PlainConsole(file=io.StringIO(), width=200, **kind)
    reporter = ConsoleReporter(console, every=every)
    reporter.begin("task 1/2: fit", total, 2)
    reporter.advance(1, "loss 0.500")
    reporter.advance(1)
    reporter.close()
    return console.file.getvalue()


def test_without_a_terminal_progress_is_lines():
    first, second = progress_of(0).splitlines()
    assert first.startswith("task 1/2: fit | 3 of 8 (38%)")
    assert first.endswith(" | loss 0.500")
    assert second.startswith("task 1/2: fit | 4 of 8 (50%)")
    assert progress_of(60) == ""
    assert progress_of(0, total=2).splitlines()[0] == "task 1/2: fit | 3", "more than was foreseen has no share"
    assert " | 3 of 8" not in progress_of(0, force_terminal=True)
