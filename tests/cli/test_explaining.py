"""Commands that explain, compare and refuse a model, as a person types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image
from tests.cli.command import ostinato
from tests.conftest import BLUE, GREEN, RED, YELLOW, photos

from ostinato.runs import history
from ostinato.runs import session as sessions

ORANGE, TEAL, CRIMSON = (225, 110, 30), (30, 120, 130), (160, 40, 80)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Two finished runs that share red and green, and photos between the colours."""
    root = tmp_path_factory.mktemp("explaining")
    photos(root / "photos", {"red": RED, "green": GREEN, "blue": BLUE}, n=10)
    photos(root / "others", {"green": GREEN, "red": RED, "yellow": YELLOW}, n=10, seed=1)
    photos(root / "may", {"red": ORANGE, "green": TEAL, "blue": BLUE}, n=6, seed=2)
    ostinato("run", "simplecil", "data=photos", "out=a", cwd=root)
    ostinato("run", "simplecil", "data=others", "out=b", cwd=root)
    return root


def test_eval_explains_its_answers(place):
    done = ostinato("eval", "a", "data=may", "out=report", "--json", cwd=place)
    result = json.loads(done.stdout)
    assert result == json.loads((place / "report/report.json").read_text()) | {"files": result["files"]}
    names = {Path(file).name for file in result["files"]}
    assert {"classes.csv", "confusion.png", "wrong.csv", "wrongest.png", "calibration.png"} <= names
    for name in names:
        if name.endswith(".png"):
            with Image.open(place / "report" / name) as image:
                assert image.width == 1200
    wrong = result["wrong"]
    assert wrong, "photos between the colours are not all right"
    assert sum(pair["count"] for pair in result["confused"]) == 18 - round(18 * result["accuracy"])
    assert sum(one["right"] for one in result["per_class"]) == round(18 * result["accuracy"])
    assert {one["name"]: one["recall"] for one in result["per_class"] if one["samples"]} == result["classes"]
    # The probability of a wrong answer is that of predict.
    said = json.loads(ostinato("predict", "a", place / "may" / wrong[0]["sample"], "--json", cwd=place).stdout)[0]
    assert said["classes"] == [wrong[0]["predicted"]]
    assert said["probabilities"][0] == pytest.approx(wrong[0]["probability"], abs=1e-4)
    # Bins of the table give the calibration error.
    with (place / "report/calibration.csv").open() as file:
        bins = [row for row in csv.DictReader(file) if row["of"] == "probability" and int(row["samples"])]
    gaps = sum(int(row["samples"]) * abs(float(row["accuracy"]) - float(row["mean"])) for row in bins)
    assert gaps / 18 == pytest.approx(result["calibration_error"], abs=1e-5)
    text = ostinato("eval", "a", "data=may", cwd=place).stdout
    pair = result["confused"][0]
    assert f"  {pair['count']} of 6  {pair['true']!r} answered as {pair['predicted']!r}\n" in text
    assert "  recall  precision   images  class\n" in text


def test_eval_refuses_a_folder_of_something_else(place):
    said = ostinato("eval", "a", "data=may", "out=photos", code=2, cwd=place).stderr
    assert "must be a new folder or one of an earlier report" in said
    said = ostinato("eval", "a", "data=may", "out=new", "eval.protocol=batch", code=2, cwd=place).stderr
    assert "Leave out eval.protocol=batch" in said
    assert not (place / "new").exists()


def test_models_are_compared_on_the_classes_that_they_share(place):
    done = ostinato("compare", "a", "b", "data=may", "out=changed.csv", "--json", cwd=place)
    result = json.loads(done.stdout)
    assert "b also knows 'yellow'. Only the 2 shared classes are scored" in done.stderr
    assert "a also knows 'blue'. Only the 2 shared classes are scored" in done.stderr
    assert "6 images of classes that one model knows alone are left out." in done.stderr
    assert (result["samples"], [one["samples"] for one in result["classes"]]) == (12, [6, 6])
    of = {run: _right(place, run) for run in ("a", "b")}
    assert result["first"] == pytest.approx(sum(of["a"].values()) / 12)
    assert result["second"] == pytest.approx(sum(of["b"].values()) / 12)
    only = [sum(of[x][name] and not of[y][name] for name in of["a"]) for x, y in (("a", "b"), ("b", "a"))]
    assert [result["only_first"], result["only_second"]] == only
    assert result["difference"] == pytest.approx((only[1] - only[0]) / 12)
    assert len(result["changed"]) == sum(only) > 0
    with (place / "changed.csv").open() as file:
        assert list(csv.DictReader(file)) == result["changed"]
    for one in result["classes"]:
        mine = [name for name in of["a"] if name.startswith(one["name"])]
        assert (one["first"], one["second"]) == tuple(sum(of[run][name] for name in mine) for run in ("a", "b"))
    # The other way round, the difference has the other sign.
    turned = ostinato("compare", "b", "a", "data=may", cwd=place).stdout
    assert f"Right alone: the first on {only[1]}, the second on {only[0]} images" in turned
    assert "Difference in points, second less first: " in turned


def test_photos_that_either_model_learned_from_are_left_out(place):
    counts = [json.loads(ostinato("compare", *runs, "data=photos", "--json", cwd=place).stdout)["samples"]
              for runs in (("a", "b"), ("b", "a"))]  # fmt: skip
    assert counts == [4, 4], "of ten photos of red and of green, a has held out two for testing"


def _right(place: Path, run: str) -> dict[str, bool]:
    """Whether each photo of red and green is right."""
    found = json.loads(ostinato("predict", run, "may/red", "may/green", "--json", cwd=place).stdout)
    sources = [Path(one["source"]) for one in found]
    return {
        f"{s.parent.name}/{s.name}": one["classes"] == [s.parent.name] for s, one in zip(sources, found, strict=True)
    }


def test_what_cannot_be_compared_is_refused(place, tmp_path):
    photos(tmp_path / "photos", {"red": RED, "cyan": TEAL}, n=4)
    ostinato("run", "simplecil", "data=photos", "out=c", cwd=tmp_path)
    said = ostinato("compare", place / "a", tmp_path / "c", "data=may", code=2, cwd=place).stderr
    assert "must share two classes or more, but share 1" in said
    assert "compare needs data=FOLDER" in ostinato("compare", "a", "b", code=2, cwd=place).stderr


# learn


@pytest.fixture
def taught(tmp_path) -> Path:
    """A run on red and blue, test photos of a darker red, and photos of a new class that look like these."""
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=8)
    photos(tmp_path / "old", {"red": CRIMSON, "blue": BLUE}, n=12, seed=1)
    photos(tmp_path / "more", {"crimson": CRIMSON}, n=12, seed=2)
    ostinato("run", "simplecil", "data=photos", "out=r", cwd=tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_that_harms_old_classes_is_kept_aside_until_it_is_accepted(taught, monkeypatch):
    before = contents(taught / "r/artifact")
    done = ostinato("learn", "r", "data=more", "eval=old", "--json", code=4, cwd=taught)
    result = json.loads(done.stdout)
    assert result["accepted"] is False
    assert result["old_samples"] == 24
    assert "the accuracy on old classes falls by" in done.stderr
    assert "'red' from 12 to" in done.stderr
    assert "ostinato learn r --accept" in done.stderr
    assert contents(taught / "r/artifact") == before
    assert not (taught / "r/learn-001").exists()
    assert len(json.loads(ostinato("history", "r", "--json", cwd=taught).stdout)) == 1
    assert "nothing to resume" in ostinato("resume", "r", cwd=taught).stdout

    def killed(root):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # before the directory gets its name
        patch.setattr(history, "next_continuation", killed)
        ostinato("learn", "r", "--accept", code=130, cwd=taught)
    said = ostinato("learn", "r", "--accept", cwd=taught).stdout
    assert said == "The model of refused-001 is in place, and its directory is learn-001; the model has 3 classes.\n"
    assert json.loads((taught / "r/learn-001/summary.json").read_text())["accepted"] is True
    assert json.loads(ostinato("history", "r", "--json", cwd=taught).stdout)[1]["new"] == ["crimson"]
    assert len(json.loads(ostinato("classes", "r", "--json", cwd=taught).stdout)) == 3
    assert "has no model that was kept aside" in ostinato("learn", "r", "--accept", code=2, cwd=taught).stderr
    ostinato("rollback", "r", cwd=taught)
    assert contents(taught / "r/artifact")["artifact.json"] == before["artifact.json"]


def test_a_model_kept_aside_cannot_replace_one_that_it_does_not_know(taught):
    ostinato("learn", "r", "data=more", "eval=old", code=4, cwd=taught)
    ostinato("classes", "r", "rename", "red", "scarlet", cwd=taught)
    before = contents(taught / "r/artifact")
    said = ostinato("learn", "r", "--accept", code=2, cwd=taught).stderr
    assert "changed since refused-001" in said
    assert contents(taught / "r/artifact") == before


def test_what_is_accepted_beforehand_is_a_warning(taught):
    result = json.loads(ostinato("learn", "r", "data=more", "eval=old", "--accept", "--json", cwd=taught).stdout)
    assert result["accepted"] is True
    assert result["warnings"][0].startswith("The accuracy on old classes falls by")
    assert Path(result["run"]).name == "learn-001"
    assert len(json.loads(ostinato("classes", "r", "--json", cwd=taught).stdout)) == 3


def test_a_larger_fall_may_be_allowed_and_needs_samples(taught):
    said = ostinato("learn", "r", "data=more", "learn.max_drop=0.5", code=2, cwd=taught).stderr
    assert "learn.max_drop=0.5 needs samples of old classes to score" in said
    assert not (taught / "r/learn-001").exists()
    result = json.loads(
        ostinato("learn", "r", "data=more", "eval=old", "learn.max_drop=1", "--json", cwd=taught).stdout
    )
    assert (result["accepted"], result["problems"]) == (True, [])
    wrong = ostinato("run", "simplecil", "data=photos", "learn.accept=true", "out=x", code=2, cwd=taught).stderr
    assert "need 'learn'" in wrong


def test_a_learn_without_samples_of_old_classes_says_so(taught):
    done = ostinato("learn", "r", "data=more", cwd=taught)
    assert "Earlier classes were not scored, so that a fall of their accuracy stays unnoticed" in " ".join(
        done.stdout.split()
    )
    assert f"eval={taught / 'photos'}scoresoldclasses" in "".join(done.stdout.split())  # lines are broken anywhere


def test_a_class_that_learned_nothing_keeps_the_earlier_model_also_after_a_kill(taught, monkeypatch):
    """Its test photos look like another class."""
    photos(taught / "odd/train", {"odd": GREEN}, n=8, seed=3)
    photos(taught / "odd/test", {"odd": BLUE}, n=6, seed=4)
    before = contents(taught / "r/artifact")

    def killed(sub):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # after the model was saved
        patch.setattr(sessions, "set_aside", killed)
        ostinato("learn", "r", "data=odd", code=130, cwd=taught)
    done = ostinato("resume", "r", code=4, cwd=taught)
    assert "the new class 'odd' has learned nothing: " in done.stderr
    assert "of 7 samples are right (7 held out), no more than by chance among 3 classes" in done.stderr
    assert contents(taught / "r/artifact") == before
    assert (taught / "r/refused-001/summary.json").exists()


def test_of_few_held_out_samples_those_learned_from_are_asked_too(taught):
    """The one test photo is wrong, which may be chance; the class is known by those that it was learned from."""
    photos(taught / "few/train", {"few": GREEN}, n=6, seed=3)
    photos(taught / "few/test", {"few": BLUE}, n=1, seed=4)
    result = json.loads(ostinato("learn", "r", "data=few", "data.validation=0", "--json", cwd=taught).stdout)
    assert (result["accepted"], result["new_accuracy"]) == (True, 0)
