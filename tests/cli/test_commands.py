"""The command line as a person types it.

Commands run in this process, which saves the seconds of importing torch; those that are killed or interrupted get
one that was forked, and one ordinary run is started as a person does it.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from tests.cli.command import ENV, README, ROOT, blocks, ostinato, process
from tests.cli.forking import Forked
from tests.conftest import BLUE, CYAN, GREEN, RED, WHITE, YELLOW, photos, save_bert, text_tables

from ostinato.backbones.weights import bundled_file
from ostinato.config import changeable
from ostinato.files import write_json, write_sealed
from ostinato.runs.session import Session


def test_the_version_is_that_of_the_package():
    assert ostinato("--version").stdout == f"ostinato {version('ostinato')}\n"


def test_without_a_command_the_help_is_shown():
    done = ostinato(code=2)
    assert done.stdout == ostinato("--help").stdout
    assert not done.stderr


def test_help_names_every_command():
    text = ostinato("--help").stdout
    for command in (
        "run",
        "resume",
        "eval",
        "compare",
        "predict",
        "check",
        "learn",
        "merge",
        "classes",
        "history",
        "rollback",
        "export",
        "push",
        "pull",
        "serve",
        "report",
        "list",
        "show",
        "demo",
        "reproduce",
        "protocols",
        "analyse",
    ):
        assert f"  {command} " in text


@pytest.mark.parametrize("command", ["resume", "learn"])
def test_help_names_the_options_that_a_command_may_change(command):
    said = " ".join(ostinato(command, "--help").stdout.split())
    assert f"Options that may change: {', '.join(changeable(command))} Arguments:" in said


def test_help_does_not_import_torch():
    code = "import sys, ostinato.cli; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENV).returncode == 0


def test_list_and_show():
    assert "dualprompt" in ostinato("list").stdout
    shown = ostinato("show", "soft_tf").stdout
    for option in ("variant", "task_id", "base.e_length", "keys.pull"):  # its own, its base class's, those of parts
        assert f"{option.rpartition('.')[2]}:" in shown
        assert f"method.{option}=" in shown
    assert "simplecil" in json.loads(ostinato("list", "--json").stdout)["methods"]
    assert "gradients and optimiser take 8 bytes per weight, 0.7 GB" in ostinato("show", "er").stdout
    text = ostinato("show", "l2p").stdout
    assert "bytes per weight" not in text
    assert "method.top_k=5" in text
    assert "train.lr=" in text
    assert "Differences from the paper" in text


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory) -> Path:
    """A finished run on a person's own folder."""
    root = tmp_path_factory.mktemp("photos")
    photos(root / "photos", {"red": RED, "green": GREEN, "blue": BLUE, "yellow": YELLOW}, n=8)
    photos(root / "more", {"white": WHITE, "cyan": CYAN}, n=6, seed=1)
    photos(root / "old", {"red": RED, "blue": BLUE}, n=4, seed=2)
    ostinato("run", "simplecil", "data=photos/", "stream.step=2", "out=runs/photos", cwd=root)
    return root


def test_run_writes_the_directory(photo_run):
    run = photo_run / "runs/photos"
    summary = json.loads((run / "summary.json").read_text())
    wanted = (
        "method, backbone, stream, tasks, classes, last_accuracy, average_accuracy, mean_task_accuracy, forgetting, "
        "bwt, protocol, trainable_parameters, stored_bytes, train_seconds, eval_seconds, last_eval_seconds, "
        "train_images_per_second, eval_images_per_second, peak_memory_bytes"
    )
    assert set(wanted.split(", ")) <= set(summary)
    assert summary["tasks"] == 2
    assert summary["classes"] == 4
    assert summary["last_accuracy"] > 0.8
    assert summary["protocol"] == "sample"
    record = json.loads((run / "record.json").read_text())
    assert len(record["backbone"]["sha256"]) == 64
    assert record["stream"]["class_order"] == ["blue", "green", "red", "yellow"]
    assert "torch" in record["versions"]
    for name in ("config.toml", "events.jsonl", "accuracy_matrix.csv", "artifact/artifact.json"):
        assert (run / name).exists(), name
    for name in ("accuracy_curve.png", "accuracy_matrix.png"):
        assert (run / "plots" / name).read_bytes().startswith(b"\x89PNG"), name
    for line in (run / "events.jsonl").read_text().splitlines():
        json.loads(line)


def test_predict_files(photo_run):
    file = photo_run / "old/red/0.jpg"
    text = ostinato("predict", "runs/photos", file, "--topk", "3", cwd=photo_run).stdout
    assert text.startswith(f"{file}: red ")
    shown = [float(value) for value in re.findall(r"(\d+\.\d)%", text)]
    assert len(shown) == 3
    assert shown == sorted(shown, reverse=True), "probabilities, best first"
    both = json.loads(ostinato("predict", "runs/photos", file, "old/blue/1.jpg", "--json", cwd=photo_run).stdout)
    assert [p["classes"][0] for p in both] == ["red", "blue"]
    assert both[0]["probabilities"][0] == pytest.approx(shown[0] / 100, abs=0.0006)


def test_what_is_like_no_class_is_answered_as_unknown(photo_run, tmp_path):
    odd, red = tmp_path / "odd.png", photo_run / "old/red/0.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(odd)
    words = ("predict", "runs/photos", odd, red, "--reject-rate", "0.2")
    lines = ostinato(*words, cwd=photo_run).stdout.splitlines()
    assert lines[0].startswith(f"{odd}: unknown, nearest ")
    assert lines[1].startswith(f"{red}: red ")
    found = json.loads(ostinato(*words, "--json", cwd=photo_run).stdout)
    assert [(p["answer"], p["unknown"]) for p in found] == [("unknown", True), ("red", False)]
    assert found[0]["typicality"] == pytest.approx(0.2)
    assert found[1]["typicality"] > 0.2
    found = json.loads(ostinato("predict", "runs/photos", red, "--threshold", "0.999", "--json", cwd=photo_run).stdout)
    assert (found[0]["answer"], found[0]["classes"]) == ("unknown", ["red"])
    refused = ostinato("predict", "runs/photos", red, "--reject-rate", "0.05", code=2, cwd=photo_run).stderr
    assert "reject_rate=0.05 needs 19 held-out samples, but this model has 4. It can take 0.2 or more." in refused


def test_a_model_without_held_out_samples_says_that_it_has_no_probabilities(photo_run, tmp_path):
    words = ("data=photos/", "data.validation=0", "stream.step=4", f"out={tmp_path / 'all'}")
    ostinato("run", "simplecil", *words, cwd=photo_run)
    done = ostinato("predict", tmp_path / "all", photo_run / "old/red/0.jpg")
    assert re.fullmatch(r".*0\.jpg: red -?0\.\d{3}\n", done.stdout), "a score, not a probability"
    assert "has no probabilities, but scores. Probabilities need samples that were held out" in done.stderr
    summary = json.loads((tmp_path / "all/summary.json").read_text())
    assert summary["calibration_error"] is None
    assert 0 <= summary["uncalibrated_error"] <= 1


def test_predictions_as_rows_and_as_objects(photo_run):
    words = ("predict", "runs/photos", "old/blue", "broken.jpg", "old/red/0.jpg", "--topk", "2")
    (photo_run / "broken.jpg").write_text("not an image")
    whole = json.loads(ostinato(*words, "--json", code=3, cwd=photo_run).stdout)
    done = ostinato(*words, "--format", "jsonl", code=3, cwd=photo_run)
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert "broken.jpg: not an image" in done.stderr
    assert [one for one in objects if "error" not in one] == whole
    bad = objects[-2]
    assert bad == {"source": "broken.jpg", "error": bad["error"]}
    assert bad["error"].startswith("not an image")
    rows = list(csv.DictReader(io.StringIO(ostinato(*words, "--format", "csv", code=3, cwd=photo_run).stdout)))
    assert [row["source"] for row in rows] == [one["source"] for one in objects]
    assert rows[-2]["error"] == bad["error"]
    assert rows[-2]["answer"] == rows[-2]["class_1"] == ""
    for row, one in zip(rows, objects, strict=True):
        if "error" not in one:
            assert (row["answer"], row["unknown"], row["error"]) == (one["answer"], "false", "")
            assert [row["class_1"], row["class_2"]] == one["classes"]
            assert [float(row["probability_1"]), float(row["probability_2"])] == one["probabilities"]
            assert [float(row["score_1"]), float(row["score_2"])] == one["scores"]
    assert "--format must be" in ostinato(*words, "--format", "xml", code=2, cwd=photo_run).stderr
    assert "needs no --json" in ostinato(*words, "--format", "csv", "--json", code=2, cwd=photo_run).stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("predict", "runs/photos", "batch_size=1"), "It takes backbone.weights=, device=, precision= and method=;"),
        (("predict", "runs/photos", "topk=3 4"), "Write --topk '3 4'."),
        (("predict", "runs/photos", "train.epochs=1"), "train.epochs=1 is neither a file nor an option of predict."),
        (("merge", "runs/photos", "runs/photos", "data=old"), "data=old is neither a file nor an option of merge."),
        (("analyse", "runs/photos", "attention", "tasks=1"), "tasks=1 is neither a file nor an option of analyse."),
    ],
)
def test_options_of_other_commands_are_told_apart_from_files(photo_run, words, told):
    assert told in ostinato(*words, code=2, cwd=photo_run).stderr


def test_a_file_may_be_named_like_an_option(photo_run):
    shutil.copyfile(photo_run / "old/red/0.jpg", photo_run / "topk=3")
    assert ostinato("predict", "runs/photos", "topk=3", cwd=photo_run).stdout.startswith("topk=3: red")


def test_predict_standard_input(photo_run, monkeypatch):
    def predicted(data, *words, code=0):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        return ostinato("predict", "runs/photos", "-", *words, "--json", code=code, cwd=photo_run)

    file = photo_run / "old/red/0.jpg"
    named = json.loads(predicted(f"{file}\r\n\nold/blue\n".encode()).stdout)
    assert [Path(p["source"]).parent.name for p in named] == ["red", *["blue"] * 4]
    held = json.loads(predicted(file.read_bytes(), "old/blue/1.jpg").stdout)
    assert [(p["source"], p["classes"][0]) for p in held] == [("standard input", "red"), ("old/blue/1.jpg", "blue")]
    assert held[0]["scores"] == pytest.approx(named[0]["scores"], abs=1e-6)
    assert "standard input: " in predicted(file.read_bytes()[:300], code=3).stderr
    assert "https://x.org/a.jpg" in predicted(b"https://x.org/a.jpg\n", code=2).stderr
    assert "Give it once" in predicted(b"", "-", code=2).stderr


def test_a_bundle_learns_and_predicts_where_the_weights_are_gone(photo_run, tmp_path):
    shutil.copyfile(bundled_file(), tmp_path / "w.safetensors")
    shutil.copytree(photo_run / "photos", tmp_path / "photos")
    weights = f"backbone.weights={tmp_path}/w.safetensors"
    ostinato("run", "simplecil", "data=photos", "stream.step=2", weights, "out=plain", cwd=tmp_path)
    ostinato("run", "simplecil", "data=photos", "stream.step=2", weights, "bundle=true", "out=whole", cwd=tmp_path)
    assert "out=PATH" in ostinato("export", "plain", code=2, cwd=tmp_path).stderr
    wrong = ostinato("export", "plain", "--to", "zip", "out=m", code=2, cwd=tmp_path).stderr
    assert "--to must name a format, got 'zip'. Known: bundle, onnx" in wrong
    assert "Written to m: " in ostinato("export", "plain", "out=m", cwd=tmp_path).stdout
    (tmp_path / "w.safetensors").unlink()
    file = photo_run / "old/red/0.jpg"
    told = ostinato("predict", "plain", file, code=2, cwd=tmp_path).stderr
    assert "backbone.weights=PATH" in told
    (tmp_path / "whole").rename(tmp_path / "moved")
    more = photo_run / "more"
    assert (
        "Leave out bundle=false"
        in ostinato("learn", "moved", f"data={more}", "bundle=false", code=2, cwd=tmp_path).stderr
    )
    first = ostinato("predict", "moved", file, cwd=tmp_path).stdout
    assert first == ostinato("predict", "m", file, cwd=tmp_path).stdout
    ostinato("learn", "moved", f"data={more}", cwd=tmp_path)
    assert ostinato("predict", "moved", more / "cyan/0.jpg", cwd=tmp_path).stdout.split(": ")[1].startswith("cyan")
    held = next((tmp_path / "moved/artifact").glob("backbone-*/*"))
    assert held.stat().st_nlink > 1, "the same weights take no more of the disk"


def test_predict_bad_files(photo_run):
    (photo_run / "broken.jpg").write_bytes(b"no image")
    done = ostinato("predict", "runs/photos", "broken.jpg", "old", code=3, cwd=photo_run)
    assert "broken.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 8, "the good files of the folder are answered all the same"
    assert "missing.jpg" in ostinato("predict", "runs/photos", "missing.jpg", code=3, cwd=photo_run).stderr


def test_eval_on_a_labelled_folder(photo_run):
    result = json.loads(ostinato("eval", "runs/photos", "data=old", "--json", cwd=photo_run).stdout)
    assert result["images"] == 8
    assert result["accuracy"] > 0.8
    text = ostinato("eval", "runs/photos", "data=more", code=3, cwd=photo_run).stderr
    assert "'cyan'" in text


def test_eval_leaves_out_what_was_not_learned_where_that_is_asked_for(photo_run):
    shutil.copytree(photo_run / "more" / "white", photo_run / "mixed" / "white")
    shutil.copytree(photo_run / "old" / "red", photo_run / "mixed" / "red")
    done = ostinato("eval", "runs/photos", "data=mixed", "eval.unknown=skip", cwd=photo_run)
    assert "6 images of classes that were not learned are left out: 'white'." in done.stdout
    assert "of 4 images, 1 classes" in done.stdout
    assert "eval.unknown=skip" in ostinato("eval", "runs/photos", "data=mixed", code=3, cwd=photo_run).stderr
    wrong = ostinato("eval", "runs/photos", "data=old", "eval.unknown=x", code=2, cwd=photo_run).stderr
    assert "eval.unknown=skip" in wrong
    wrong = ostinato("run", "simplecil", "data=old", "eval.unknown=skip", "out=x", code=2, cwd=photo_run).stderr
    assert "need 'learn'" in wrong


def test_eval_on_the_very_data_scores_what_was_held_out(photo_run):
    result = json.loads(ostinato("eval", "runs/photos", "data=photos/", "--json", cwd=photo_run).stdout)
    summary = json.loads((photo_run / "runs/photos/summary.json").read_text())
    assert result["images"] == 4, "one of eight images per class was held out"
    assert result["accuracy"] == pytest.approx(summary["last_accuracy"])


def test_eval_knows_what_was_learned_from_wherever_it_lies(photo_run, tmp_path):
    """Not by path and not by name: in a folder that grew and moved, and with the artifact alone."""
    moved = tmp_path / "moved"
    shutil.copytree(photo_run / "photos", moved)
    photos(tmp_path / "new", {"red": RED, "blue": BLUE}, n=3, seed=9)
    for i in range(3):
        (tmp_path / f"new/red/{i}.jpg").rename(moved / f"red/000{i}.jpg")
    model = shutil.copytree(photo_run / "runs/photos/artifact", tmp_path / "model")
    done = ostinato("eval", model, f"data={moved}", "--json")
    assert json.loads(done.stdout)["images"] == 4 + 3
    assert "28 of the 35 images of moved were learned from or validated on; the other 7 are scored." in done.stderr
    shutil.rmtree(moved / "green")
    for i in range(3):
        (moved / f"red/000{i}.jpg").unlink()
    text = ostinato("eval", model, f"data={moved}", "data.limit_per_class=3", code=2).stderr
    assert "data.limit_per_class has no effect on scoring" in text


def test_a_runs_own_configuration_repeats_it(photo_run, tmp_path):
    config = photo_run / "runs/photos/config.toml"
    ostinato("run", "simplecil", "-c", config, "out=again", cwd=tmp_path)
    for name in ("accuracy_matrix.csv",):
        assert (tmp_path / "again" / name).read_text() == (photo_run / "runs/photos" / name).read_text()


def test_report(photo_run):
    text = ostinato("report", "runs/photos", "--markdown", "--csv", "t.csv", "--plot", "t.png", cwd=photo_run).stdout
    assert "simplecil" in text
    assert (photo_run / "t.csv").read_text().count("\n") >= 2
    assert (photo_run / "t.png").stat().st_size > 1000
    ostinato("run", "simplecil", "data=photos", "seed=1", "eval.split=validation", "out=runs/apart", cwd=photo_run)
    two = ("runs/photos", "runs/apart", "--against", "runs/photos")
    (first, second) = json.loads(ostinato("report", *two, "--json", cwd=photo_run).stdout)
    assert first["not_comparable"] is None
    assert "scored on validation, not on test" in second["not_comparable"]
    for more in ((), ("--markdown",)):
        text = ostinato("report", *two, *more, cwd=photo_run).stdout
        table, apart = text.split("Not comparable with runs/photos: ")
        assert "reference" in table
        assert "scored on validation, not on test" in apart
        assert "(runs/apart)" in apart
    assert "none at none" in ostinato("report", "runs/photos", "--against", "none", code=3, cwd=photo_run).stderr


def test_learn_more_classes_months_later(photo_run):
    before = json.loads((photo_run / "runs/photos/artifact/artifact.json").read_text())
    result = json.loads(ostinato("learn", "runs/photos", "data=more", "eval=old", "--json", cwd=photo_run).stdout)
    assert result["classes"] == 6
    assert result["tasks"] == 3
    assert result["old_accuracy_before"] > 0.8
    assert result["old_accuracy_after"] > 0.6
    assert result["new_accuracy"] > 0.6
    file = "more/cyan/2.jpg"
    assert json.loads(ostinato("predict", "runs/photos", file, "--json", cwd=photo_run).stdout)[0]["classes"] == [
        "cyan"
    ]
    scored = json.loads(ostinato("eval", "runs/photos", "data=more", "--json", cwd=photo_run).stdout)
    assert scored["images"] == 2, "of the six images of each new class one was held out"
    own = json.loads(ostinato("eval", "runs/photos", "data=photos", "--json", cwd=photo_run).stdout)
    assert own["images"] == 4, "nor those that were learned from before"
    kept = json.loads((photo_run / "runs/photos/learn-001/artifact_before/artifact.json").read_text())
    assert kept == before
    text = ostinato("learn", "runs/photos", "data=more", code=3, cwd=photo_run).stderr
    assert "are of known classes and were learned before" in text


def test_merged_runs_predict_and_are_scored(tmp_path):
    """Neither sees the other's photos; green is learned from photos of both."""
    photos(tmp_path / "mine", {"red": RED, "green": GREEN}, n=4)
    photos(tmp_path / "theirs", {"green": GREEN, "blue": BLUE}, n=4, seed=1)
    photos(tmp_path / "test", {"red": RED, "green": GREEN, "blue": BLUE}, n=2, seed=2)
    for name in ("mine", "theirs"):
        ostinato("run", "ranpac", f"data={name}", "method.n_random=99", f"out=runs/{name}", cwd=tmp_path)
    said = ostinato("merge", "runs/mine", "runs/theirs", "device=cpu", "--out", "runs/ours", cwd=tmp_path).stdout
    assert said == f"3 classes. Written to {Path('runs/ours')}.\n"
    found = json.loads(ostinato("predict", "runs/ours", "test/blue", "test/red", "--json", cwd=tmp_path).stdout)
    assert [one["classes"] for one in found] == [["blue"], ["blue"], ["red"], ["red"]]
    scored = json.loads(ostinato("eval", "runs/ours", "data=test", "--json", cwd=tmp_path).stdout)
    assert (scored["images"], scored["accuracy"]) == (6, 1.0)
    ostinato("run", "ranpac", "data=mine", "method.n_random=98", "out=runs/other", cwd=tmp_path)
    error = ostinato("merge", "runs/mine", "runs/other", code=2, cwd=tmp_path).stderr
    assert "method.n_random is 99 in the first run and 98 in run 2" in error
    assert not list((tmp_path / "runs").glob("merged-*"))


def test_learn_twice_from_elsewhere_with_one_image_a_class(photo_run, tmp_path):
    """Without anything to score on, the classes are learned all the same, and no accuracy is claimed."""
    photos(tmp_path / "single", {"black": (5, 5, 5)}, n=1)
    run = photo_run / "runs/photos"
    (run / "learn-001.bak").mkdir()  # a copy that somebody made
    result = json.loads(ostinato("learn", run, "data=single", "--json", cwd=tmp_path).stdout)
    assert result["last_accuracy"] is None
    assert result["new_accuracy"] is None
    assert result["run"].endswith("learn-002")
    file = tmp_path / "single/black/0.jpg"
    assert json.loads(ostinato("predict", run, file, "--json").stdout)[0]["classes"] == ["black"]


def test_learn_more_photos_of_known_and_new_classes_and_change_them(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=5)
    photos(tmp_path / "more", {"red": RED, "green": GREEN}, n=10, seed=1)
    shutil.copy(tmp_path / "photos/red/0.jpg", tmp_path / "more/red/again.jpg")
    ostinato("run", "slda", "data=photos", "data.validation=0", "out=r", cwd=tmp_path)
    result = json.loads(ostinato("learn", "r", "data=more", "--json", cwd=tmp_path).stdout)
    assert (result["classes"], result["tasks"]) == (3, 3)
    assert (result["known_accuracy_before"], result["known_accuracy_after"], result["new_accuracy"]) == (1, 1, 1)
    record = json.loads((tmp_path / "r/learn-001/record.json").read_text())["stream"]
    assert (record["class_order"], record["known"]["classes"]) == (["green"], ["red"])
    said = " ".join(ostinato("learn", "r", "data=more", code=3, cwd=tmp_path).stderr.split())
    assert "are of known classes and were learned before. Add new ones." in said
    photos(tmp_path / "last", {"blue": BLUE}, n=5, seed=2)
    said = " ".join(ostinato("learn", "r", "data=last", cwd=tmp_path).stdout.split())
    assert "more samples of blue refine its sums over samples" in said
    assert "Known classes, on test samples of the new data: 100" in said
    found = json.loads(ostinato("classes", "r", "--json", cwd=tmp_path).stdout)
    assert [(one["name"], one["task"]) for one in found] == [("blue", 1), ("red", 2), ("green", 3)]
    samples = {one["name"]: one["samples"] for one in found}
    assert (samples["blue"], samples["green"]) == (8, 8), "of five, one is for testing"
    assert "task 3       8 samples  green\n" in ostinato("classes", "r", cwd=tmp_path).stdout

    assert "called 'lime' now" in ostinato("classes", "r", "rename", "green", "lime", cwd=tmp_path).stdout
    said = ostinato("classes", "r", "remove", "lime", "data=photos", code=3, cwd=tmp_path).stderr
    assert "has no class 'lime'" in said
    (tmp_path / "more/green").rename(tmp_path / "more/lime")
    said = ostinato("classes", "r", "remove", "lime", "data=more", cwd=tmp_path).stdout
    assert said == "'lime' is removed, and nothing of its samples stays.\n"
    answers = json.loads(ostinato("predict", "r", "more/lime", "--topk", "3", "--json", cwd=tmp_path).stdout)
    assert all(sorted(one["classes"]) == ["blue", "red"] for one in answers)
    again = json.loads(ostinato("learn", "r", "data=more", "--json", cwd=tmp_path).stdout)
    assert (again["classes"], again["new_accuracy"]) == (3, 1)
    assert "'lime' is 'blue' now" in ostinato("classes", "r", "merge", "blue", "lime", cwd=tmp_path).stdout
    said = ostinato("classes", "r", "remove", "red", code=2, cwd=tmp_path).stderr
    assert "at least 2 classes must stay" in said
    said = ostinato("classes", "r", "rename", "red", code=2, cwd=tmp_path).stderr
    assert "'rename OLD NEW'" in said


def test_a_learn_is_listed_and_undone(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=5)
    photos(tmp_path / "more", {"red": RED, "green": GREEN}, n=5, seed=1)
    ostinato("run", "simplecil", "data=photos", "out=r", cwd=tmp_path)
    assert "nothing to undo" in ostinato("rollback", "r", code=2, cwd=tmp_path).stderr
    before = (tmp_path / "r/artifact/artifact.json").read_bytes()
    ostinato("learn", "r", "data=more", cwd=tmp_path)
    steps = json.loads(ostinato("history", "r", "--json", cwd=tmp_path).stdout)
    assert [(one["name"], one["new"], one["known"]) for one in steps] == [
        ("r", ["blue", "red"], []), ("learn-001", ["green"], ["red"]),
    ]  # fmt: skip
    assert ostinato("history", "r", cwd=tmp_path).stdout.endswith("1 new: green; more of red\n")
    said = ostinato("rollback", "r", cwd=tmp_path).stdout
    assert said == "learn-001 is undone and kept as undone-001; the model has 2 classes.\n"
    assert (tmp_path / "r/artifact/artifact.json").read_bytes() == before
    result = json.loads(ostinato("learn", "r", "data=more", "--json", cwd=tmp_path).stdout)
    assert (result["classes"], Path(result["run"]).name) == (3, "learn-001")
    ostinato("classes", "r", "rename", "green", "lime", cwd=tmp_path)
    said = ostinato("rollback", "r", cwd=tmp_path).stdout
    assert "kept as undone-001-2" in said
    assert "Changes of classes since then are undone, too." in said
    assert len(json.loads(ostinato("history", "r", "--json", cwd=tmp_path).stdout)) == 1
    assert json.loads(ostinato("classes", "r", "--json", cwd=tmp_path).stdout)[1]["samples"] == 3


def test_known_classes_of_a_method_that_cannot_are_refused_before_anything_is_written(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=4)
    photos(tmp_path / "more", {"red": RED, "green": GREEN}, n=4, seed=1)
    ostinato("run", "l2p", "data=photos", "train.epochs=1", "out=r", cwd=tmp_path)
    said = ostinato("learn", "r", "data=more", code=2, cwd=tmp_path).stderr
    assert "l2p knows 'red', and no part of this method learns more samples" in said
    assert not (tmp_path / "r/learn-001").exists()


def test_a_name_that_is_nearly_a_known_one_takes_a_choice(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=4)
    photos(tmp_path / "more", {"Red ": RED, "green": GREEN}, n=4, seed=1)
    ostinato("run", "simplecil", "data=photos", "out=r", cwd=tmp_path)
    said = ostinato("learn", "r", "data=more", code=3, cwd=tmp_path).stderr
    assert "'Red ' beside 'red'" in said
    assert "data.twins=known" in said
    assert not (tmp_path / "r/learn-001").exists()
    assert (
        json.loads(ostinato("learn", "r", "data=more", "data.twins=known", "--json", cwd=tmp_path).stdout)["classes"]
        == 3
    )
    wrong = ostinato("run", "simplecil", "data=photos", "data.twins=new", "out=s", code=2, cwd=tmp_path).stderr
    assert "data.twins needs 'learn'" in wrong


def test_a_killed_learn_of_known_classes_is_resumed_to_the_same_model(tmp_path, monkeypatch):
    """The kill comes after the known classes were learned, in the training of the new ones."""
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=4)
    photos(tmp_path / "more", {"red": RED, "green": GREEN, "white": WHITE}, n=6, seed=1)
    words = ("method.keys=gaussians", "train.epochs=2", "train.batch_size=4", "checkpoint.every=1")
    ostinato("run", "dualprompt", "data=photos", *words, "out=a", cwd=tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ostinato("learn", "a", "data=more", cwd=tmp_path)

    class Killed(BaseException):
        pass

    inside = Session.checkpoint_inside

    def killed(self, position, *rest):
        inside(self, position, *rest)
        if position.step == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Session, "checkpoint_inside", killed)
        with pytest.raises(Killed):
            ostinato("learn", "b", "data=more", cwd=tmp_path)
    assert "not finished" in ostinato("classes", "b", "rename", "red", "rot", code=2, cwd=tmp_path).stderr
    ostinato("resume", "b", cwd=tmp_path)
    one, two = (json.loads((tmp_path / r / "artifact/artifact.json").read_text()) for r in "ab")
    for key in ("class_names", "samples", "task_sizes"):
        assert one[key] == two[key]
    assert one["learned"]["sha256"] == two["learned"]["sha256"]
    assert one["used"]["sha256"] == two["used"]["sha256"]


def test_duplicates_and_what_was_learned_before_are_pointed_out(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=5)
    for file in list((tmp_path / "photos").rglob("*.jpg")):
        shutil.copy(file, file.with_name(f"copy of {file.name}"))
    photos(tmp_path / "more", {"green": GREEN}, n=4)
    shutil.copytree(tmp_path / "photos/red", tmp_path / "more/crimson")
    said = " ".join(ostinato("run", "simplecil", "data=photos", "out=r", cwd=tmp_path).stdout.split())
    assert re.search(r"[1-4] of the 4 test samples have the same content as a training sample", said)
    said = " ".join(ostinato("learn", "r", "data=more", cwd=tmp_path).stdout.split())
    assert re.search(r"\d+ of the \d+ training samples were learned before", said)
    assert "rendered characters" not in said, "nothing can be done about it any more"
    for command in ("report", "show"):
        said = " ".join(ostinato(command, "r", cwd=tmp_path).stdout.split())
        assert "r was continued by learn-001; its model now has 4 classes." in said


def test_classes_called_nearly_alike_in_one_table_are_pointed_out(text_run, tmp_path):
    lines = "".join(f"w{i % 7} w{i},{label}\n" for i in range(12) for label in ("Konto", "KONTO", "Karte"))
    (tmp_path / "train.csv").write_text(f"text,label\n{lines}")
    done = ostinato("run", "simplecil", f"data={tmp_path}", f"backbone={text_run / 'bert'}", "out=r", cwd=tmp_path)
    assert re.search(r"class '(Konto|KONTO)' is learned as another class than '(Konto|KONTO)'", done.stdout)


def test_resume_and_collect_say_where_to_point(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=4)
    ostinato("run", "simplecil", "data=photos", "out=r", cwd=tmp_path)
    (tmp_path / "r/summary.json").unlink()
    (tmp_path / "photos").rename(tmp_path / "moved")
    text = ostinato("resume", "r", code=2, cwd=tmp_path).stderr
    assert "its data are not at" in text
    assert "ostinato resume r data=PATH" in text
    assert (
        json.loads(ostinato("resume", "r", f"data={tmp_path / 'moved'}", "--json", cwd=tmp_path).stdout)["classes"] == 2
    )
    (tmp_path / "t.toml").write_text('title = "t"\ndata = "digits"\n[[row]]\nname = "a"\nmethod = "simplecil"\n')
    (tmp_path / "page.md").write_text("<!-- table:t -->\nfilled\n<!-- /table:t -->\n")
    assert "data=digits" in ostinato("reproduce", "t.toml", "--dry-run", cwd=tmp_path).stdout
    text = ostinato("reproduce", "t.toml", "--collect", "page.md", "out=elsewhere", code=2, cwd=tmp_path).stderr
    assert "none of these rows was measured below elsewhere" in text
    assert "filled" in (tmp_path / "page.md").read_text()


def test_an_interrupted_learn_is_resumed(forked, tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=6)
    photos(tmp_path / "more", {"green": GREEN, "white": WHITE}, n=12, seed=1)
    words = ("train.epochs=4", "train.batch_size=4", "checkpoint.every=1")
    ostinato("run", "dualprompt", "data=photos", "stream.step=2", "out=a", *words, cwd=tmp_path)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    ostinato("learn", "a", "data=more", cwd=tmp_path)
    victim = forked("learn", "b", "data=more", cwd=tmp_path)
    wait_for(tmp_path / "b/learn-001/events.jsonl", 7, victim)
    victim.kill()
    victim.communicate()
    assert "not finished" in ostinato("learn", "b", "data=more", code=2, cwd=tmp_path).stderr
    (tmp_path / "more").rename(tmp_path / "moved")
    assert "moved" not in ostinato("resume", "b", code=2, cwd=tmp_path).stderr
    ostinato("resume", "b", f"data={tmp_path / 'moved'}", cwd=tmp_path)
    assert (tmp_path / "b/artifact/artifact.json").exists()
    one, two = (next((tmp_path / r / "artifact").glob("learned-*")).read_bytes() for r in "ab")
    assert one == two


@pytest.mark.parametrize("rename", range(4))
def test_a_continuation_killed_while_it_takes_its_place_is_resumed(photo_run, tmp_path, monkeypatch, rename):
    """Before each rename of an artifact, and after the last one, there is a model, and a way to the new one."""
    run = shutil.copytree(photo_run / "runs/photos", tmp_path / "run", ignore=shutil.ignore_patterns("learn-*"))
    if (old := photo_run / "runs/photos/learn-001/artifact_before").exists():  # an earlier test has taught it more
        shutil.rmtree(run / "artifact")
        shutil.copytree(old, run / "artifact")
    photos(tmp_path / "more", {"pink": (250, 150, 170), "grey": (120, 120, 120)}, n=6)
    seen = []

    class Killed(BaseException):
        pass

    def counted(path, text):
        if len(seen) == rename:
            raise Killed
        seen.append(path)
        write_sealed(path, text)

    def killed(path, value):
        if path.name == "summary.json":
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr("ostinato.artifact.write_sealed", counted)
        if rename == 3:
            patch.setattr("ostinato.runs.rundir.write_json", killed)
        with pytest.raises(Killed):
            ostinato("learn", run, f"data={tmp_path / 'more'}", f"eval={photo_run / 'old'}")
    places = ["learn-001/artifact", "learn-001/artifact_before", "artifact"]
    assert [str(path.parent.relative_to(run)) for path in seen] == places[:rename]
    assert (run / "artifact").exists() or (run / "learn-001/artifact_before").exists()
    advice = ostinato("learn", run, f"data={tmp_path / 'more'}", code=2).stderr
    assert ("delete" in advice) == (rename < 2), "not once the old model may lie in there alone"
    result = json.loads(ostinato("resume", run, "--json").stdout)
    assert result["classes"] == 6
    assert result["old_accuracy_before"] > 0.8
    kept = json.loads((run / "learn-001/artifact_before/artifact.json").read_text())
    assert len(kept["class_names"]) == 4
    assert len(json.loads((run / "artifact/artifact.json").read_text())["class_names"]) == 6
    assert json.loads(ostinato("eval", run, f"data={tmp_path / 'more'}", "--json").stdout)["images"] == 2
    assert not list(run.rglob("*.part")), "nothing half done is left"


def test_resume_refuses_other_data(forked, tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=6)
    victim = forked("run", "dualprompt", "data=photos", "stream.step=1", "out=r", "train.epochs=50", cwd=tmp_path)
    wait_for(tmp_path / "r/events.jsonl", 3, victim)
    victim.kill()
    victim.communicate()
    (tmp_path / "photos/red/0.jpg").unlink()
    assert "the data changed" in ostinato("resume", "r", code=2, cwd=tmp_path).stderr
    assert "cannot change in 'resume'" in ostinato("resume", "r", "train.epochs=1", code=2, cwd=tmp_path).stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["run", "simplecli", "data=digits"], 2, "Did you mean 'simplecil'"),
        (["run", "simplecil", "data=no/such/folder"], 2, "no/such/folder"),
        (["run", "simplecil", "data.pth=digits"], 2, "Did you mean 'data.path'"),
        (["run", "l2p", "data=digits", "method.topk=3"], 2, "Did you mean 'top_k'"),
        (["run", "l2p", "data=digits", "method.top_k=99"], 2, "pool_size"),
        (["run", "l2p", "data=digits", "train.epoch=3"], 2, "Did you mean 'epochs'"),
        (["run", "l2p", "data=digits", "train.epochs=many"], 2, "train.epochs"),
        (["run", "simplecil", "data=digits", "stream.step=0"], 2, "stream.step"),
        (["run", "simplecil", "data=digits", "backbone=vit_tiny_patch16_22"], 2, "Did you mean"),
        (["run", "simplecil", "digits"], 2, "key=value"),
        (["run", "simplecil", "-c", "none.toml"], 2, "none.toml"),
        (["resume", "nowhere"], 2, "no run directory"),
        (["predict", "nowhere", "x.jpg"], 2, "nowhere"),
        (["predict", "nowhere", "https://example.org/x.jpg"], 2, "is a URL. Download it first"),
        (["run", "simplecil", "data=https://example.org/photos"], 2, "is a URL. Download it first"),
        (["report", "nowhere"], 3, "nowhere"),
        (["frobnicate"], 2, "frobnicate"),
    ],
)
def test_mistakes_get_one_clear_line(words, code, says, tmp_path):
    done = ostinato(*words, code=code, cwd=tmp_path)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists(), "nothing may be written for a mistake"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "Out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "Out of memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
            "Out of",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/runs/a/x.json"),
            "/runs/a/x.json: No space left on device.",
        ),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "Tensors cannot be written"),
    ],
)
def test_what_the_machine_lacks_gets_one_line_and_the_way_on(photo_run, tmp_path, monkeypatch, error, says):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr("ostinato.runs.session.Session.execute", fails)
    text = ostinato("run", "simplecil", f"data={photo_run / 'photos'}", f"out={tmp_path / 'r'}", code=3).stderr
    assert text.startswith("error: ")
    assert says in text
    assert "'ostinato resume RUN' continues" in text
    assert text.count("\n") == 1


def test_places_that_cannot_be_written_get_one_line(photo_run, tmp_path):
    (tmp_path / "file").write_text("")
    done = ostinato("run", "simplecil", f"data={photo_run / 'photos'}", f"out={tmp_path / 'file/r'}", code=3)
    assert "file/r: Not a directory." in done.stderr
    done = ostinato("report", "runs/photos", "--csv", tmp_path / "no/t.csv", code=3, cwd=photo_run)
    assert done.stderr == f"error: {tmp_path / 'no/t.csv'}: No such file or directory.\n"


def test_defects_leave_a_report_and_no_trace(photo_run, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("a defect")

    monkeypatch.setattr("ostinato.learner.Learner.load", fails)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    text = ostinato("predict", "runs/photos", "old", code=70, cwd=photo_run).stderr
    assert text.startswith("error: RuntimeError: a defect (")
    assert "Traceback" not in text
    (report,) = tmp_path.iterdir()
    assert f"A report is in {report}; please send it with an issue" in text
    written = report.read_text()
    assert all(part in written for part in ("Traceback", "in fails", "['predict', 'runs/photos', 'old']", "torch "))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    text = ostinato("predict", "runs/photos", "old", code=70, cwd=photo_run).stderr
    assert "no report of it could be written (No such file or directory)" in text


def test_ctrl_c_promises_to_go_on_only_where_it_can(photo_run, monkeypatch):
    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("ostinato.learner.Learner.load", stops)
    assert ostinato("predict", "runs/photos", "old", code=130, cwd=photo_run).stderr == "Interrupted.\n"
    assert "resume RUN" in ostinato("learn", "runs/photos", "data=old", code=130, cwd=photo_run).stderr


@pytest.mark.parametrize("words", ["show dualprompt", "report runs/photos"], ids=["lines", "table"])
def test_a_closed_pipe_ends_with_its_own_code(photo_run, words):
    command = f"{sys.executable} -m ostinato {words} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=ENV, cwd=photo_run, capture_output=True, text=True)
    assert done.stderr == "Stopped, because the output was closed.\n"
    assert done.returncode == 141


def test_large_images_are_read_without_a_warning(photo_run, monkeypatch):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 1000)  # beyond twice that it is an error
    file = next((photo_run / "old").rglob("*.jpg"))
    done = ostinato("predict", "runs/photos", file, cwd=photo_run)
    assert done.stderr == ""


def test_names_do_not_command_the_terminal(tmp_path):
    evil = "red\x1b[2J\u202e"
    photos(tmp_path / "photos", {evil: RED, "blue": BLUE}, n=5)
    done = ostinato("run", "simplecil", "data=photos", "stream.step=1", "out=r\x1b[31m", cwd=tmp_path)
    shown = ostinato("predict", "r\x1b[31m", f"photos/{evil}/0.jpg", cwd=tmp_path).stdout
    told = ostinato("predict", "r\x1b[31m", f"photos/{evil}/none.jpg", code=3, cwd=tmp_path).stderr
    table = ostinato("report", "r\x1b[31m", cwd=tmp_path).stdout
    assert "\\x1b[2J\\u202e" in shown
    for text in (done.stdout, done.stderr, shown, told, table):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_show_a_run(photo_run):
    found = json.loads(ostinato("show", "runs/photos", "--json", cwd=photo_run).stdout)
    assert found["config"]["method"]["name"] == "simplecil"
    assert found["summary"]["method"] == "simplecil"
    text = ostinato("show", "runs/photos", cwd=photo_run).stdout
    assert 'name = "simplecil"' in text
    assert '"last_accuracy"' in text
    assert re.search(r"^Classes\ntask 1 +\d+ samples  \w+\n", text, flags=re.MULTILINE)
    assert re.search(r"^Learned\n\S+  photos  .* new: ", text, flags=re.MULTILINE)


def test_an_output_directory_is_never_overwritten(photo_run):
    text = ostinato("run", "simplecil", "data=digits", "out=runs/photos", code=2, cwd=photo_run).stderr
    assert "not empty" in text


def test_bad_images_are_listed_and_can_be_skipped(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=5)
    (tmp_path / "photos/red/empty.jpg").touch()
    (tmp_path / "photos/blue/noise.png").write_bytes(b"\x00" * 100)
    text = ostinato("run", "simplecil", "data=photos", "stream.step=1", "out=r", code=3, cwd=tmp_path).stderr
    assert "empty.jpg" in text
    assert "noise.png" in text
    assert "data.on_error=skip" in text
    done = ostinato(
        "run", "simplecil", "data=photos", "stream.step=1", "data.on_error=skip", "out=r", cwd=tmp_path
    )  # fmt: skip
    assert "empty.jpg" in done.stdout
    assert len(json.loads((tmp_path / "r/record.json").read_text())["stream"]["skipped"]) == 2


RUN = (
    "run", "dualprompt", "data=digits", "train.epochs=2", "train.batch_size=8", "data.limit_per_class=12",
    "data.test_limit_per_class=6", "checkpoint.every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    running = process(*RUN, "out=run", cwd=root)
    assert "Written to run" in running.communicate()[0]
    return root / "run"


def wait_for(path: Path, lines: int, running: Forked) -> None:
    """Until a log has so many lines."""
    deadline = time.monotonic() + 120
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert running.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def same_result(a: Path, b: Path) -> None:
    assert (a / "accuracy_matrix.csv").read_text() == (b / "accuracy_matrix.csv").read_text()
    strip = [
        [
            {k: v for k, v in json.loads(line).items() if k != "time"}
            for line in (p / "events.jsonl").read_text().splitlines()
        ]
        for p in (a, b)
    ]
    steps = [[e for e in events if e["event"] == "step"] for events in strip]
    assert steps[0] == steps[1], "every step must have had the same losses"


@pytest.mark.slow
@pytest.mark.parametrize("lines", [4, 13, 22])
def test_sigkill_anywhere_and_resume_gives_the_same_matrix(forked, whole, tmp_path, lines):
    victim = forked(*RUN, "out=run", cwd=tmp_path)
    wait_for(tmp_path / "run/events.jsonl", lines, victim)
    victim.kill()
    victim.communicate()
    assert not (tmp_path / "run/summary.json").exists()
    assert "ostinato resume" in ostinato("report", "run", code=3, cwd=tmp_path).stderr
    ostinato("resume", "run", cwd=tmp_path)
    same_result(tmp_path / "run", whole)
    again = ostinato("resume", "run", cwd=tmp_path).stdout
    assert "run is finished; there is nothing to resume" in again
    (tmp_path / "run/checkpoints/000007").mkdir(parents=True)  # killed while they were removed
    ostinato("resume", "run", cwd=tmp_path)
    assert not (tmp_path / "run/checkpoints").exists()
    same_result(tmp_path / "run", whole)


def test_ctrl_c_saves_and_says_how_to_go_on(forked, whole, tmp_path):
    asked = forked(*RUN, "out=run", cwd=tmp_path)
    wait_for(tmp_path / "run/events.jsonl", 10, asked)
    asked.send_signal(signal.SIGINT)
    _, message = asked.communicate(timeout=60)
    assert asked.returncode == 130
    assert "ostinato resume run" in message
    assert "Traceback" not in message
    ostinato("resume", "run", cwd=tmp_path)
    same_result(tmp_path / "run", whole)


def test_demo_shows_forgetting_and_its_cure(tmp_path):
    stale = tmp_path / "runs/demo/finetune"
    stale.mkdir(parents=True)
    assert "not made by the demo" in ostinato("demo", code=2, cwd=tmp_path).stderr
    stale.rmdir()
    summaries = {s["run"]: s for s in json.loads(ostinato("demo", "--json", cwd=tmp_path).stdout)}
    assert set(summaries) == {"finetune", "ranpac", "duet"}
    assert summaries["finetune"]["forgetting"] > 0.5, "sequential fine-tuning must visibly forget"
    last = {name: s["last_accuracy"] for name, s in summaries.items()}
    assert last["ranpac"] > last["finetune"] + 0.3
    assert last["duet"] >= last["ranpac"], "the default method ends on top"
    assert (tmp_path / "runs/demo/compare.png").stat().st_size > 1000


def test_a_run_that_names_no_method_takes_the_default(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}, n=8)
    done = ostinato("run", "data=photos", "stream.step=2", "method.n_random=200", "out=r", cwd=tmp_path)
    assert "Method: duet." in done.stdout
    assert json.loads((tmp_path / "r/artifact/artifact.json").read_text())["method"] == "duet"
    (tmp_path / "c.toml").write_text('method = "simplecil"\n')
    ostinato("run", "data=photos", "-c", "c.toml", "out=s", cwd=tmp_path)
    assert json.loads((tmp_path / "s/artifact/artifact.json").read_text())["method"] == "simplecil"
    wrong = ostinato("run", "-p", "cifar100", "data=photos", code=2, cwd=tmp_path).stderr
    assert "-p cifar100 needs a method" in wrong


def test_batch_protocols_are_asked_for_by_name_and_stamped(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}, n=8)
    ostinato("run", "soft_tf", "data=photos", "stream.step=2", "train.epochs=1", "out=r", cwd=tmp_path)
    (study,) = json.loads(ostinato("protocols", "r", "--batch", "3", "--shots", "2", "--json", cwd=tmp_path).stdout)
    named = {(row["rule"], row["protocol"]) for row in study["rows"]}
    rules = {"prompt_id", "gradient_id", "min_entropy", "max_score"}
    each = {"sample", "batch(3), majority", "batch(3), 2 shots", "batch(3), 3 shots"}
    assert named == {(r, p) for r in rules for p in each} | {("-", "true task")}

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table:protocols -->\nold\n<!-- /table:protocols -->\nafter\n")
    ostinato("protocols", "r", "--rules", "prompt_id", "--batch", "3", "--collect", "page.md", cwd=tmp_path)
    text = page.read_text()
    assert "| `r` | `prompt_id` | batch(3), majority |" in text
    assert "old" not in text
    assert text.startswith("before")
    assert text.endswith("after\n")

    words = ("eval", "r", "data=photos", "eval.protocol=batch", "eval.batch=3", "eval.shots=2", "--json")
    result = json.loads(ostinato(*words, cwd=tmp_path).stdout)
    assert result["protocol"] == "batch(3), 2 shots"
    assert 0 <= result["task_id_accuracy"] <= 1
    assert "protocol" not in json.loads(ostinato("eval", "r", "data=photos", "--json", cwd=tmp_path).stdout)
    wrong = ostinato("eval", "r", "data=photos", "eval.shots=2", code=2, cwd=tmp_path).stderr
    assert "need eval.protocol=batch" in wrong


def test_the_commands_for_own_texts_answer_as_the_page_says(tmp_path):
    text_tables(tmp_path / "intents", 4, "csv")
    save_bert(tmp_path / "minilm")
    text_tables(tmp_path / "more_intents", 1, "jsonl")
    for file in (tmp_path / "more_intents").iterdir():
        file.write_text(file.read_text().replace("planet 0", "moon"))
    (tmp_path / "questions.txt").write_text("w1 w2\nw5 w6 w7\n")
    (tmp_path / "tickets.csv").write_text("id,text\n7,w9 w8\n")
    block = next(b for b in blocks("sh", ROOT / "docs/howto/texts.md") if "data=intents/" in b)
    run, predict, learn = (shlex.split(line)[1:] for line in block.splitlines())
    ostinato(*run, cwd=tmp_path)
    shown = ostinato(*predict, cwd=tmp_path).stdout.splitlines()
    names = [line.split(": ")[0] for line in shown]
    assert names == ["text 0", "questions.txt:1", "questions.txt:2", "tickets.csv row 0"]
    assert all(line.count("planet") == 3 for line in shown)
    ostinato(*learn, "--accept", cwd=tmp_path)  # random weights learn nothing of seven texts
    found = json.loads(
        ostinato("predict", "runs/intents", "--text", "w1 w1", "--topk", "9", "--json", cwd=tmp_path).stdout
    )
    assert set(found[0]["classes"]) == {"moon", *(f"planet {i}" for i in range(4))}
    record = json.loads((tmp_path / "runs/intents/record.json").read_text())
    assert record["preprocess"]["length"] == 16
    assert record["backbone"]["name"] == "minilm"


@pytest.fixture(scope="module")
def text_run(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    text_tables(root / "intents", 3)
    save_bert(root / "bert")
    ostinato("run", "simplecil", "data=intents", "backbone=bert", "backbone.length=8", "out=run", cwd=root)
    return root


def test_predict_bad_texts(text_run):
    """Each gets a line of its own, and the others are answered."""
    (text_run / "lines.txt").write_bytes("\ufeffw1\n\ngrün\n".encode() + "grün\n".encode("latin-1") + b"w2 w3\r\n")
    (text_run / "latin.csv").write_bytes("text\ngrün\n".encode("latin-1"))
    done = ostinato("predict", "run", "lines.txt", "--text", " ", "--text", "w1", code=3, cwd=text_run)
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == [
        "text 1", "lines.txt:1", "lines.txt:3", "lines.txt:5"
    ]  # fmt: skip
    assert "text 0: the text is empty." in done.stderr
    assert "lines.txt:2: the text is empty." in done.stderr
    assert "lines.txt:4: byte 2 is not UTF-8" in done.stderr
    assert "latin.csv cannot be read as csv" in ostinato("predict", "run", "latin.csv", code=3, cwd=text_run).stderr
    (text_run / "other.csv").write_text("a,b\n1,2\n")
    assert "Give --column NAME" in ostinato("predict", "run", "other.csv", code=2, cwd=text_run).stderr
    assert "a: " not in ostinato("predict", "run", "other.csv", "--column", "a", cwd=text_run).stderr
    assert (
        "no column of other.csv"
        in ostinato("predict", "run", "other.csv", "--column", "c", code=2, cwd=text_run).stderr
    )
    assert "give image files, text files or --text" in ostinato("predict", "run", code=2, cwd=text_run).stderr


def test_texts_of_a_named_column_are_predicted_as_written(text_run):
    (text_run / "named.csv").write_text("question\n007\n1.0\n")
    (text_run / "same.txt").write_text("007\n1.0\n")
    named = json.loads(ostinato("predict", "run", "named.csv", "--column", "question", "--json", cwd=text_run).stdout)
    same = json.loads(ostinato("predict", "run", "same.txt", "--json", cwd=text_run).stdout)
    assert [p["scores"] for p in named] == [p["scores"] for p in same]


def test_what_a_run_was_told_of_its_columns_holds_for_more_and_for_scoring(text_run, tmp_path):
    """And can be told anew for data that are different."""
    for name, classes, column in (("first", "ab", "question"), ("more", "cd", "question"), ("last", "ef", "title")):
        rows = [(f"w{i % 7} w{ord(c) - 94} w{i % 5}", c) for c in classes for i in range(10)]
        (tmp_path / name).mkdir()
        lines = "".join(f"{text},{c}\n" for text, c in rows)
        (tmp_path / name / "train.csv").write_text(f"{column},intent\n{lines}")
    own = ("data.text_column=question", "data.label_column=intent")
    ostinato("run", "simplecil", "data=first", f"backbone={text_run / 'bert'}", "stream.step=2", *own, "out=r",
             cwd=tmp_path)  # fmt: skip
    done = ostinato("predict", "r", "first/train.csv", "--json", cwd=tmp_path)
    assert len(json.loads(done.stdout)) == 20, "nor need it be said to predict"
    ostinato("learn", "r", "data=more", "eval=first", "--accept", cwd=tmp_path)
    ostinato("learn", "r", "data=last", "data.text_column=title", "eval=more", "--accept", cwd=tmp_path)
    for data, more in (("first", ()), ("more", ()), ("last", ("data.text_column=title",))):
        done = ostinato("eval", "r", f"data={data}", *more, "--json", cwd=tmp_path)
        assert json.loads(done.stdout)["images"] == 4, data
    assert "texts, 2 classes" in ostinato("eval", "r", "data=more", cwd=tmp_path).stdout
    assert "no column of last" in ostinato("eval", "r", "data=last", code=2, cwd=tmp_path).stderr


def test_a_model_is_refused_on_the_same_weights_with_other_files_beside_them(text_run, tmp_path):
    shutil.copytree(text_run / "bert", tmp_path / "bert")
    ostinato("run", "simplecil", f"data={text_run / 'intents'}", "backbone=bert", "out=r", cwd=tmp_path)
    (tmp_path / "bert/1_Pooling").mkdir()
    (tmp_path / "bert/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    text = ostinato("predict", "r", "--text", "w1", code=3, cwd=tmp_path).stderr
    assert "readout was 'cls' when it was learned and is 'mean' now" in text
    (tmp_path / "bert/1_Pooling/config.json").unlink()
    (tmp_path / "bert/sentence_bert_config.json").write_text('{"max_seq_length": 5}')
    ostinato("predict", "r", "--text", "w1", cwd=tmp_path)
    assert json.loads((tmp_path / "r/artifact/artifact.json").read_text())["backbone"]["length"] == 16


def test_the_runs_precision_is_that_of_its_model(text_run):
    ostinato("run", "simplecil", "data=intents", "backbone=bert", "precision=bf16", "out=half", cwd=text_run)
    words = ("--text", "w1 w2 w3", "--json")
    half, full = (
        json.loads(ostinato("predict", "half", *words, *more, cwd=text_run).stdout)[0]["scores"]
        for more in ((), ("precision=fp32",))
    )
    assert half != full
    assert half == pytest.approx(full, abs=0.05)
    assert "precision must be" in ostinato("predict", "half", "precision=fp8", *words, code=2, cwd=text_run).stderr


def test_a_text_of_a_megabyte_is_answered_by_its_beginning(text_run):
    start = " ".join(f"w{i % 4}" for i in range(6))
    (text_run / "long.txt").write_text(start + " w9" * 350_000 + "\n" + start + "\n")
    long, short = json.loads(ostinato("predict", "run", "long.txt", "--json", cwd=text_run).stdout)
    assert long["scores"] == pytest.approx(short["scores"], abs=1e-5)


def test_long_training_texts_are_reported(text_run):
    done = ostinato("run", "simplecil", "data=intents", "backbone=bert", "backbone.length=8", "out=again", cwd=text_run)
    assert re.search(r"\d+ of 36 training texts have more than 8 tokens \(at most 1[01]\)", done.stdout)


def test_options_that_do_not_fit_are_refused(text_run, photo_run):
    for words, says in (
        (["run", "simplecil", "data=intents"], "hold texts, but the backbone takes images"),
        (["run", "simplecil", "data=digits", "backbone=bert"], "hold images, but the backbone takes texts"),
        (["run", "simplecil", "data=intents", "backbone=bert", "data.augment=photo"], "must be 'none' for texts"),
        (["run", "simplecil", "data=intents", "backbone=bert", "backbone.size=8"], "are for images"),
        (["run", "simplecil", "data=digits", "backbone.length=8"], "is for text encoders"),
        (["run", "simplecil", "data=digits", "method.device=cpu"], "method.device: unknown key"),
        (["predict", photo_run / "runs/photos", "--text", "w1"], "learned images"),
        (["run", "simplecil", "data=intents", "backbone=bert", "data.alike=true"], "no two sets share a name"),
    ):
        assert says in ostinato(*words, code=2, cwd=text_run).stderr, words


def test_sets_as_tasks_and_stars_that_count_alike(tmp_path):
    text_tables(tmp_path / "data/one", 3)
    text_tables(tmp_path / "data/two", 3, "jsonl")  # the same texts under the same names
    save_bert(tmp_path / "bert")
    words = ["run", "simplecil", "data=data", 'data.sets=["two","one"]', "backbone=bert"]
    apart = json.loads(ostinato(*words, "--json", "out=a", cwd=tmp_path).stdout)
    alike = json.loads(ostinato(*words, "--json", "data.alike=true", "out=b", cwd=tmp_path).stdout)
    assert (apart["tasks"], apart["classes"]) == (2, 6)
    assert alike["last_accuracy"] > apart["last_accuracy"] + 0.2
    assert ostinato("eval", "a", "data=data/one", code=3, cwd=tmp_path).stderr
    again = json.loads(ostinato("eval", "b", "data=data", "--json", cwd=tmp_path).stdout)
    assert again["accuracy"] == alike["last_accuracy"], "also where it is scored later"
    for more, images in (((), 36), (('data.sets=["one"]',), 18)):
        assert json.loads(ostinato("eval", "a", "data=data", *more, "--json", cwd=tmp_path).stdout)["images"] == images


def test_the_readme_names_every_method():
    from ostinato.lookup import methods

    for name in methods():
        assert f"`{name}`" in README.read_text(encoding="utf-8"), name


def test_classes_with_one_image_are_learned_and_a_first_task_of_them_is_refused(tmp_path):
    photos(tmp_path / "photos", {"a_red": RED, "b_blue": BLUE}, n=4)
    photos(tmp_path / "photos", {"c_green": GREEN}, n=1)
    done = ostinato("run", "simplecil", "data=photos", "stream.step=1", "out=r", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["classes"] == 3
    text = ostinato(
        "run", "simplecil", "data=photos", 'stream.tasks=[["c_green"],["a_red","b_blue"]]', "out=s",
        code=2, cwd=tmp_path,
    ).stderr  # fmt: skip
    assert "first task has no sample to score on" in text
