"""Models with intact files and unfit contents: never a wrong answer without a word, never the exit of a defect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ostinato import artifact, load
from ostinato.backbones import Backbone
from ostinato.backbones.weights import load_backbone
from ostinato.learner.certainty import PREFIX
from ostinato.runs.session import Session
from tests.cli.command import ostinato
from tests.conftest import photos, save_bert, text_tables

METHODS = ("simplecil", "dualprompt", "cl_lora")
WORDS = ("data=photos", "stream.step=2", "train.epochs=1", "device=cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Photos, and a finished run of each method."""
    root = tmp_path_factory.mktemp("models")
    photos(root / "photos", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
    for name in METHODS:
        words = WORDS if name != "simplecil" else WORDS[:2]
        ostinato("run", name, *words, f"out={name}", cwd=root)
    return root


def rewritten(source: Path, target: Path, change) -> None:
    """A model with changed tensors, sealed anew as somebody hostile would."""
    saved = artifact.read(source)
    about = saved.about.model_dump(exclude={"format", "learned", "used", "method_text"})
    artifact.write(target, about, change(dict(saved.learned)), saved.used, None)


CHANGES = {
    "nan": lambda t: t * torch.nan if t.is_floating_point() else t,
    "inf": lambda t: t + torch.inf if t.is_floating_point() else t,
    "empty": lambda t: t[:0] if t.ndim else t,
    "one more": lambda t: torch.cat([t, t]) if t.ndim else t,
    "flat": lambda t: t.flatten(),
    "number": lambda t: t.flatten()[:1].sum(),
    "integers": lambda t: t.to(torch.int64) + 1000,
    "doubles": lambda t: t.double(),
    "one dimension more": lambda t: t[None],
}


@pytest.fixture(scope="module")
def bundled() -> Backbone:
    return load_backbone()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", METHODS)
def test_tensors_that_do_not_fit_are_refused(models, bundled, monkeypatch, tmp_path, name, change):
    """All together, the first, the last and two between alone; what can be used all the same gives finite scores."""
    # The frozen weights are read from their file once.
    monkeypatch.setattr("ostinato.learner.learner.load_backbone", lambda **_: bundled)
    shutil.copytree(models / name, tmp_path / "r")
    keys = sorted(artifact.read(models / name / "artifact").learned)
    for some in (keys, *([key] for key in sorted({keys[i * (len(keys) - 1) // 3] for i in range(4)}))):
        rewritten(
            models / name / "artifact",
            tmp_path / "r/artifact",
            lambda tensors, some=some: tensors | {key: CHANGES[change](tensors[key]) for key in some},
        )
        done = ostinato("predict", tmp_path / "r", models / "photos/c0/0.jpg", "--json", code=(0, 2, 3))
        if done.stdout.strip():
            (answer,) = json.loads(done.stdout, parse_constant=pytest.fail)
            assert all(abs(score) < float("inf") for score in answer["scores"])
        elif some is not keys and "scores must be finite" not in done.stderr:
            continue  # the model was not loaded, and eval loads it by the same function
        ostinato("eval", tmp_path / "r", f"data={models / 'photos'}", code=(0, 2, 3))
    if change in ("nan", "inf"):
        assert "must be finite numbers" in done.stderr or done.stdout, "the last tensor may be one that scores ignore"


def test_a_model_of_nan_gives_no_label(models, tmp_path):
    shutil.copytree(models / "simplecil", tmp_path / "r")
    rewritten(
        models / "simplecil/artifact",
        tmp_path / "r/artifact",
        lambda tensors: {k: t if k.startswith(PREFIX) else CHANGES["nan"](t) for k, t in tensors.items()},
    )
    done = ostinato("predict", tmp_path / "r", models / "photos/c0/0.jpg", "--json", code=2)
    assert done.stdout == ""
    assert "scores must be finite numbers, but those of class 'c0' are not" in done.stderr


def test_the_tensors_of_another_run_are_refused(models, tmp_path):
    """File by file, and the whole artifact."""
    shutil.copytree(models / "dualprompt", tmp_path / "r")
    shutil.rmtree(tmp_path / "r/artifact")
    shutil.copytree(models / "cl_lora/artifact", tmp_path / "r/artifact")
    text = ostinato("predict", tmp_path / "r", models / "photos/c0/0.jpg", code=3).stderr
    assert "the artifact in it is of another run" in text


def stops_inside(session, *arguments) -> None:
    WHOLE(session, *arguments)
    raise KeyboardInterrupt


WHOLE = Session.checkpoint_inside


def test_a_run_keeps_its_model_without_the_continuation_that_made_it(models, tmp_path):
    shutil.copytree(models / "simplecil", tmp_path / "r")
    photos(tmp_path / "more", {"d": (9, 9, 9), "e": (90, 9, 9)}, n=4)
    ostinato("learn", tmp_path / "r", f"data={tmp_path / 'more'}")
    shutil.rmtree(tmp_path / "r/learn-001")
    assert ostinato("predict", tmp_path / "r", tmp_path / "more/d/0.jpg").stdout
    load(tmp_path / "r").save(tmp_path / "r/artifact")
    assert ostinato("predict", tmp_path / "r", tmp_path / "more/d/0.jpg").stdout


@pytest.mark.parametrize("alike", [False, True])
def test_a_run_that_goes_on_leaves_the_artifact_of_one_that_did_not_stop(tmp_path, monkeypatch, alike):
    """With precision=auto, with classes that count alike, and when more is learned."""
    short = ("train.epochs=1", "checkpoint.every=1")
    if alike:
        save_bert(tmp_path / "bert")
        for name in "ab":
            text_tables(tmp_path / "data" / name, 2)
        text_tables(tmp_path / "more", 2)
        for file in (tmp_path / "more").iterdir():
            table = pq.read_table(file).to_pydict()
            table["label"] = [label.replace("planet", "moon") for label in table["label"]]
            pq.write_table(pa.table(table), file)
        words = ("data=data", 'data.sets=["a","b"]', "data.alike=true", "backbone=bert")
    else:
        photos(tmp_path / "data", {f"c{i}": (60 * i, 255 - 60 * i, 0) for i in range(4)}, n=4)
        photos(tmp_path / "more", {"d": (9, 9, 9), "e": (90, 9, 9)}, n=4)
        words = ("data=data", "stream.step=2")

    def about(run: str) -> dict:
        return artifact.read(tmp_path / run / "artifact").about.model_dump(exclude={"run_id"})

    for words_of in (
        lambda out: ("run", "dualprompt", *words, *short, f"out={out}"),
        lambda out: ("learn", out, "data=more", "--accept", *short),
    ):
        ostinato(*words_of("whole"), cwd=tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(Session, "checkpoint_inside", stops_inside)
            ostinato(*words_of("stopped"), code=130, cwd=tmp_path)
        ostinato("resume", "stopped", cwd=tmp_path)
        assert about("stopped") == about("whole")
        assert about("whole")["precision"] == "auto"
        assert (about("whole")["label_groups"] is not None) == alike
