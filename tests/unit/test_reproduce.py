"""Tables that run themselves: what is planned, run, resumed, quoted and written."""

import csv
import json
import re
import shlex
import shutil
from contextlib import chdir

import pytest
from tests.conftest import BLUE, GREEN, RED, WHITE, photos, save_bert, text_tables

from ostinato import reproduce
from ostinato.analysis.base import Subject
from ostinato.analysis.protocols import study
from ostinato.cli import main
from ostinato.errors import InputError, Interrupted
from ostinato.evaluation.answers import read_answers
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.evaluation.metrics import summary as metrics
from ostinato.evaluation.pairing import paired_difference
from ostinato.learner import Learner
from ostinato.presets import table_names
from ostinato.report.console import Reporter
from ostinato.reproduce.results import Measured
from ostinato.reproduce.show import markdown, upper_bound

TABLE = """
title = "Colours"
source = "nobody"
verified = "no row."
options = ["stream.step=2", "precision=fp32", "data.limit_per_class=6", "checkpoint.every=1"]

[[row]]
name = "ncm"
method = "simplecil"
options = ["data=photos"]
published = { last = 90.0, forgetting = 1.5 }

[[row]]
name = "prompts"
label = "DualPrompt | short"
method = "dualprompt"
options = ["data=photos", "train.epochs=1", "train.batch_size=4", "data.limit_per_class=5", "method.e_layers=5",
  "eval.protocol=batch", "eval.batch=3"]
published_costs = { trainable_parameters = 30_000, train_seconds = 12_120, last_eval_seconds = 76 }
note = "One epoch."

[[row]]
name = "vote"
not_run = "a vote of the batch is not offered."
published = { last = 99.0 }
"""


def workplace(root):
    """A directory with a table and its data."""
    photos(root / "photos", {"red": RED, "green": GREEN, "blue": BLUE, "white": WHITE}, n=8)
    (root / "mine.toml").write_text(TABLE)
    return root


def ostinato(capsys, *words, code=0):
    """What a command printed."""
    try:
        main([str(word) for word in words])
        got = 0
    except SystemExit as stop:
        got = stop.code
    out, err = capsys.readouterr()
    assert got == code, out + err
    return out + err


def plans(name, *words, rows=(), fetch=False):
    table = reproduce.read_table(str(name))
    given = reproduce.sort_options(table, words)
    return table, given, reproduce.plan_rows(table, table.choose(rows), given, fetch=fetch)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The table after one whole run."""
    root = workplace(tmp_path_factory.mktemp("done"))
    with chdir(root):
        main(["reproduce", "mine.toml", "out=out"])
    return root


@pytest.mark.parametrize("name", table_names())
def test_every_row_of_every_table_would_run(name, tmp_path, monkeypatch):
    """Its options are those of its method, and with data and weights at hand it lacks nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.safetensors").touch()
    table = reproduce.read_table(name)
    data = [f"data.{d}={tmp_path}" for d in dict.fromkeys(row.data for row in table.rows if row.data)]
    _, _, planned = plans(name, *data)
    assert planned
    assert [plan.missing for plan in planned] == [()] * len(planned)
    assert len({plan.command for plan in planned}) == len(planned)
    assert {plan.row.name for plan in planned} == {row.name for row in table.rows if row.not_run is None}
    if not name.startswith("ostinato/"):
        assert table.verified, "a published table says what was verified"
        assert {plan.config.precision for plan in planned} == {"fp32"}, "as in the public code of the papers"


def test_two_rows_run_and_one_is_quoted(done):
    text = (done / "out/table.md").read_text()
    rows = list(csv.DictReader((done / "out/table.csv").read_text().splitlines()))
    assert [row["row"] for row in rows] == ["ncm", "prompts", "vote"]
    assert float(rows[0]["published_last"]) == 0.9
    assert float(rows[0]["last_accuracy"]) >= 0.5
    assert rows[2]["last_accuracy"] == rows[2]["command"] == ""
    assert "| published last % | last % |" in text
    assert "DualPrompt \\| short" in text
    assert re.search(r"^\| vote \| vote \| 99\.00 \| - \| - \| - \| - \|", text, re.MULTILINE)
    assert "- `prompts`: One epoch." in text
    assert "- `vote`: a vote of the batch" in text
    assert "Published: nobody." in text
    assert "Verified: no row." in text


def test_published_costs_stand_beside_the_measured(done):
    """Test seconds are those of the last evaluation, under the published protocol too."""
    text = (done / "out/table.md").read_text()
    lines = [[c.strip() for c in x.strip("|").split(" | ")] for x in text.splitlines() if x.startswith("|")]
    ncm, prompts = (dict(zip(lines[0], line, strict=True)) for line in lines[2:4])
    assert (prompts["published trainable"], prompts["published train s"], prompts["published test s"]) == (
        "0.03 M", "12120", "76.0"
    )  # fmt: skip
    assert ncm["published test s"] == ncm["in batches, test s"] == "-"
    assert "cpu, 1 thread" in text
    summary = json.loads((done / "out/prompts/summary.json").read_text())
    assert prompts["test s"] == f"{summary['last_eval_seconds']:.1f}"
    assert prompts["in batches, test s"] == f"{summary['batch_last_eval_seconds']:.1f}"
    both = summary["last_eval_seconds"] + summary["batch_last_eval_seconds"]
    assert 0 < both < summary["eval_seconds"], "that of the first task is not in it"
    rows = list(csv.DictReader((done / "out/table.csv").read_text().splitlines()))
    assert [row["published_train_seconds"] for row in rows] == ["", "12120.0", ""]
    assert "published" not in rows[0]["last_eval_seconds"]


def test_a_row_in_batches_has_the_result_per_sample_beside_it(done):
    """The batch columns are those of the trained model under the protocol; the published one stands beside them."""
    run = done / "out/prompts"
    summary = json.loads((run / "summary.json").read_text())
    scored = {row.protocol: row for row in study(run, size=3, shots=()).rows}
    assert summary["batch_protocol"] == "batch(3), majority"
    assert json.loads((run / "record.json").read_text())["batch_protocol"] == "batch(3), majority"
    assert summary["batch_last_accuracy"] == pytest.approx(scored["batch(3), majority"].accuracy)
    assert summary["batch_task_id_accuracy"] == pytest.approx(scored["batch(3), majority"].task_id_accuracy)
    assert summary["last_accuracy"] == pytest.approx(scored["sample"].accuracy)
    matrix = AccuracyMatrix.from_csv(run / "accuracy_matrix_batch.csv")
    assert summary["batch_forgetting"] == metrics(matrix)["forgetting"]
    assert matrix.n_rows == 2
    first, last = (
        e for e in map(json.loads, (run / "events.jsonl").read_text().splitlines()) if e["event"] == "evaluated"
    )
    learner = Learner.load(run)
    of_task = learner.evaluate([g.with_transform(learner.eval_transform) for g in Subject(run, learner).held_out()])
    assert last["task_incremental_accuracy"] == of_task.task_incremental_accuracy
    end = of_task.task_incremental[0] / of_task.totals[0]
    best = max(first["task_incremental_accuracy"], end)
    assert summary["task_incremental_forgetting"] == pytest.approx(best - end)
    rows = list(csv.DictReader((done / "out/table.csv").read_text().splitlines()))
    assert [row["batch_protocol"] for row in rows] == ["", "batch(3), majority", ""]
    assert "| published last % | last % | in batches, last % |" in (done / "out/table.md").read_text()


def test_learning_more_scores_every_sample_alone(done, tmp_path, capsys, monkeypatch):
    shutil.copytree(done / "out/prompts", tmp_path / "run")
    photos(tmp_path / "more", {"grey": (90, 90, 90)}, n=6)
    monkeypatch.chdir(tmp_path)
    refused = ostinato(capsys, "learn", "run", "data=more", "eval.protocol=batch", code=2)
    assert "eval.protocol=batch needs 'run'" in refused
    assert "sample by sample" in ostinato(capsys, "learn", "run", "data=more", "train.epochs=1")
    assert "batch_protocol" not in json.loads((tmp_path / "run/learn-001/summary.json").read_text())


def test_the_printed_command_is_the_run(done):
    """No hidden options: the command, typed by hand, gives the same configuration and the same matrix."""
    rows = list(csv.DictReader((done / "out/table.csv").read_text().splitlines()))
    words = shlex.split(rows[1]["command"])
    assert words[:3] == ["ostinato", "run", "dualprompt"]
    assert words.count("data.limit_per_class=5") == 1
    assert "data.limit_per_class=6" not in words
    with chdir(done):
        main([*words[1:-1], "out=by_hand"])
    for name in ("config.toml", "accuracy_matrix.csv"):
        assert (done / "by_hand" / name).read_text() == (done / "out/prompts" / name).read_text()


@pytest.mark.slow
def test_rows_in_processes_give_the_same_results(done, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    ostinato(capsys, "reproduce", "mine.toml", "--jobs", "2", "out=out")
    for row in ("ncm", "prompts"):
        one, two = (root / f"out/{row}/accuracy_matrix.csv" for root in (tmp_path, done))
        assert one.read_text() == two.read_text()
        assert "accuracy" in (tmp_path / f"out/logs/{row}.txt").read_text()
    commands = json.loads((tmp_path / "out/commands.json").read_text())
    assert set(commands) == {"ncm", "prompts"}
    assert "90.00" in (tmp_path / "out/table.md").read_text()


def test_a_finished_row_is_not_run_again(done, capsys, monkeypatch):
    monkeypatch.chdir(done)
    monkeypatch.setattr("ostinato.runs.lifecycle.start", None)
    monkeypatch.setattr("ostinato.runs.lifecycle.resume", None)
    text = ostinato(capsys, "reproduce", "mine.toml", "out=out")
    assert "90.00" in text
    result = json.loads(ostinato(capsys, "reproduce", "mine.toml", "prompts", "vote", "out=out", "--json"))
    assert [row["state"] for row in result["rows"]] == ["finished", "quoted"]
    assert result["rows"][0]["summary"]["method"] == "dualprompt"
    assert result["rows"][1]["published_percent"] == {"last": 99.0}


def test_a_finished_row_with_other_options_is_refused(done, capsys, monkeypatch):
    monkeypatch.chdir(done)
    text = ostinato(capsys, "reproduce", "mine.toml", "ncm", "out=out", "seed=3", code=2)
    assert "seed was 0 and is 3 now" in text
    text = ostinato(capsys, "reproduce", "mine.toml", "ncm", "out=out", "data=digits", code=2)
    assert f"data was {done / 'photos'} and is digits now" in text
    ostinato(capsys, "reproduce", "mine.toml", "ncm", "out=out", "device=cpu", "checkpoint.every=7")


def test_rows_are_compared_with_a_row_where_they_can_be(done, capsys, monkeypatch):
    monkeypatch.chdir(done)
    assert "against" not in (done / "out/table.md").read_text(), "no row is by the usual reference"
    result = json.loads(ostinato(capsys, "reproduce", "mine.toml", "out=out", "--against", "ncm", "--json"))
    reason = "5 training samples a class, not 6"
    assert [row["not_comparable"] for row in result["rows"]] == [None, reason, None]
    text = (done / "out/table.md").read_text()
    assert "against ncm, points" in text
    assert f"- `prompts` cannot be compared with `ncm`: {reason}" in text
    text = ostinato(capsys, "reproduce", "mine.toml", "out=out", "--against", "vote", code=2)
    assert "--against must name a row that mine runs, got vote" in text
    ostinato(capsys, "reproduce", "mine.toml", "out=out")


SEEDS = """
title = "Two seeds"
options = ["stream.step=2", "precision=fp32", "data=digits", "data.limit_per_class=6", "data.test_limit_per_class=20"]
variant = [{ name = "s0", options = ["seed=0"] }, { name = "s1", options = ["seed=1"] }]
row = [{ name = "ranpac", method = "simplecil" }, { name = "crop", method = "simplecil", options = ["data.crop=0.4"] }]
"""


def test_a_row_is_compared_over_all_its_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.toml").write_text(SEEDS)
    monkeypatch.setattr("ostinato.reproduce.results.REFERENCE", "simplecil")  # that of two rows: neither is meant
    ostinato(capsys, "reproduce", "seeds.toml", "out=out")
    assert "against" not in (tmp_path / "out/table.md").read_text()
    ostinato(capsys, "reproduce", "seeds.toml", "out=out", "--against", "ranpac")
    text = (tmp_path / "out/table.md").read_text()
    rows = {r["row"]: r for r in csv.DictReader((tmp_path / "out/table.csv").read_text().splitlines())}
    pairs = []
    for s in ("s0", "s1"):
        crop, base = (read_answers(tmp_path / f"out/{name}-{s}/answers.npz") for name in ("crop", "ranpac"))
        pairs.append((crop, base))
        assert float(rows[f"crop-{s}"]["difference"]) == pytest.approx(crop.right.mean() - base.right.mean())
        assert rows[f"ranpac-{s}"]["difference"] == ""
    want = paired_difference(pairs)
    assert want.mean < -0.05
    assert "| against ranpac, points |" in text
    assert re.search(rf"^\| crop .* \| {re.escape(str(want))} \|", text, re.MULTILINE)
    assert re.search(r"^\| ranpac .* \| reference \|", text, re.MULTILINE)
    assert "below two standard errors" in text


def test_the_best_bound_is_named(tmp_path, monkeypatch):
    rows = "".join(f'[[row]]\nname = "{name}"\nmethod = "joint"\nbound = true\n' for name in ("head", "lora", "full"))
    path = tmp_path / "bounds.toml"
    path.write_text(f'title = "Bounds"\n{rows}[[row]]\nname = "other"\nmethod = "joint"\n')
    table = reproduce.read_table(str(path))
    last = {"head": 0.5, "lora": 0.75, "full": None, "other": 0.9}
    results = [Measured(r, last[r.name] and {"last_accuracy": last[r.name]}, None) for r in table.rows]
    assert upper_bound(results) == "Upper bound: `lora`, 75.0 %, the best of it and `head`, `full` (not run: `full`)."
    assert upper_bound(results[-1:]) is None
    assert "Upper bound: `lora`" in markdown(table, results)


def test_dry_run_prints_commands_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    text = ostinato(capsys, "reproduce", "mine.toml", "--dry-run", "seed=1", "data.limit_per_class=3")
    assert text.count("data.limit_per_class=3") == 2, "options of the command win"
    assert "ostinato run simplecil stream.step=2" in text
    assert "seed=1 out=runs/mine/ncm" in text
    assert "vote: quoted only" in text
    assert not (tmp_path / "runs").exists()


class Killed(BaseException):
    """Like a power cut: nothing gets a chance to tidy up."""


class Killer(Reporter):
    def __init__(self, after):
        self.left = after

    def advance(self, n, note=""):
        self.left -= bool(note)  # training steps have a note, the loss
        if not self.left:
            raise Killed


def test_a_killed_row_is_resumed_to_the_same_result(done, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    table, given, planned = plans("mine.toml", "out=out")
    with pytest.raises(Killed):
        reproduce.run_plans(planned, table, given, Killer(after=3))
    assert (tmp_path / "out/ncm/summary.json").exists()
    assert list((tmp_path / "out/prompts/checkpoints").iterdir())
    assert "| prompts | DualPrompt \\| short | - | - |" in (tmp_path / "out/table.md").read_text()
    assert "prompts: begun" in ostinato(capsys, "reproduce", "mine.toml", "--dry-run", "out=out")
    ostinato(capsys, "reproduce", "mine.toml", "out=out")
    one, two = (root / "out/prompts/accuracy_matrix.csv" for root in (tmp_path, done))
    assert one.read_text() == two.read_text()
    started = (tmp_path / "out/prompts/events.jsonl").read_text().count('"event": "stage"')
    assert started == (done / "out/prompts/events.jsonl").read_text().count('"event": "stage"') + 1, "one resume"


def test_asked_to_stop_it_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise Interrupted("Stopped.")

    monkeypatch.chdir(workplace(tmp_path))
    monkeypatch.setattr("ostinato.runs.lifecycle.start", stopped)
    assert "Stopped in row ncm" in ostinato(capsys, "reproduce", "mine.toml", code=130)


def test_rows_that_lack_data_are_named_and_the_others_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    (tmp_path / "two.toml").write_text(
        TABLE + '[[row]]\nname = "far"\npreset = "imagenet_r/simplecil"\n'
        '[[row]]\nname = "typo"\nmethod = "simplecil"\ndata = "cub200"\n'
    )
    text = ostinato(capsys, "reproduce", "two.toml", "ncm", "far", "typo", "out=out", "data.cub200=no/where")
    assert "data of imagenet_r: give data.imagenet_r=PATH, a folder with train/ and test/" in text
    assert "LAMDA-PILOT" in text
    assert "needed by far" in text
    assert "'no/where' is neither a path" in text
    assert (tmp_path / "out/ncm/summary.json").exists()
    assert not (tmp_path / "out/far").exists()
    text = ostinato(capsys, "reproduce", "two.toml", "far", "vote", "out=out", code=3)
    assert "No row can run" in text
    assert "needed by far" in text
    (row,) = json.loads(ostinato(capsys, "reproduce", "two.toml", "far", "--dry-run", "--json"))["rows"]
    assert len(row["missing"]) == 1


def test_missing_weights_are_found_before_the_first_run(tmp_path, capsys, monkeypatch):
    def offline(name):
        raise InputError(f"backbone: the weights of {name!r} could not be fetched.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ostinato.backbones.weights.load_backbone", offline)
    (tmp_path / "photos").mkdir()
    text = ostinato(capsys, "reproduce", "soft_tf/table4", "data=photos", code=3)
    assert text.count("could not be fetched") == 1, "said once, not per row"
    assert "backbone.weights.vit_base_patch16_224.orig_in21k=FILE" in text
    assert "needed by xavier-prompt, kaiming-prompt, normal-prompt, ones-prompt, 2 more" in text
    text = ostinato(capsys, "reproduce", "soft_tf/table4", "data=photos", "backbone.weights=w.pth", code=3)
    assert "there is nothing at w.pth" in text
    assert not (tmp_path / "runs").exists()


def test_rows_whose_layers_an_encoder_lacks_are_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bert", "words"):
        (tmp_path / name).mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert", "num_hidden_layers": 6}')
    rows = ("soft_tf-l3-5-order4", "soft_tf-l10-12-order4", "dualprompt-l10-12-order4")
    words = ("data=words", "backbone.weights=bert", "--dry-run")
    text = ostinato(capsys, "reproduce", "soft_tf/table2", *rows, *words)
    assert "soft_tf-l3-5-order4: new\n" in text
    assert "soft_tf-l10-12-order4: new, cannot run yet\n" in text
    assert "layers: bert-base-uncased has 6, and method.layers is [9, 10, 11]: give method.layers=" in text
    assert "and method.e_layers is [9, 10, 11]" in text
    assert text.count("needed by") == 2
    given = ostinato(capsys, "reproduce", "soft_tf/table2", rows[1], *words, "method.layers=3,4,5")
    assert "soft_tf-l10-12-order4: new\n" in given


def test_data_and_weights_of_many(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cifar", "renditions", "w"):
        (tmp_path / name).mkdir()
    rows = ("cifar100-l2p", "cifar100_20-l2p", "imagenet_r-l2p")
    _, _, (a, b, c) = plans("soft_tf/table1", "data=cifar", "data.imagenet_r=renditions", rows=rows)
    assert [plan.config.data.path for plan in (a, b, c)] == ["cifar", "cifar", "renditions"]
    assert "-p imagenet_r eval.protocol=sample data=renditions out=runs/soft_tf-table1/imagenet_r-l2p" in c.command
    _, _, (c,) = plans("soft_tf/table1", "data=renditions", rows=rows[2:])
    assert c.config.data.path == "renditions"
    *_, c = plans("soft_tf/table1", "data=cifar", rows=rows)[2]
    assert len(c.missing) == 1, "a bare data= is not taken for other data"
    with pytest.raises(InputError, match="has no row on it"):
        plans("soft_tf/table1", "data.vtab=x")
    with pytest.raises(InputError, match=r"2 backbones.*backbone\.weights\.vit_base_patch16_224\.augreg_in21k=FILE"):
        plans("cl_lora/main", "backbone.weights=w")
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    (one, two) = plans(
        "cl_lora/main", f"backbone.weights.{name}=w.pth", rows=("vtab-cl_lora", "imagenet_r_b5_5-cl_lora")
    )[2]
    assert (one.config.backbone.weights, two.config.backbone.weights) == ("w.pth", None)
    assert "backbone.weights=w.pth" in one.command


def test_a_failed_row_does_not_keep_others_from_running(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    (tmp_path / "t.toml").write_text(
        'title = "t"\noptions = ["precision=fp32", "data.limit_per_class=3"]\n'
        '[[row]]\nname = "bad"\nmethod = "simplecil"\noptions = ["data=photos", "stream.first=5", "stream.step=1"]\n'
        '[[row]]\nname = "good"\nmethod = "simplecil"\noptions = ["data=photos", "stream.step=2"]\n'
    )
    text = ostinato(capsys, "reproduce", "t.toml", "out=o", code=3)
    assert "bad: first must be at most the 4 classes" in text
    assert (tmp_path / "o/good/summary.json").exists()


def test_a_row_without_memory_or_space_is_a_failed_row(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    (tmp_path / "t.toml").write_text(
        'title = "t"\noptions = ["data=photos", "stream.step=2"]\n'
        '[[row]]\nname = "large"\nmethod = "simplecil"\n[[row]]\nname = "small"\nmethod = "simplecil"\n'
    )
    from ostinato.runs import lifecycle

    start = lifecycle.start

    def too_large(config, out, reporter):
        if out.name == "large":
            raise MemoryError
        return start(config, out, reporter)

    monkeypatch.setattr("ostinato.runs.lifecycle.start", too_large)
    assert "large: Out of memory" in ostinato(capsys, "reproduce", "t.toml", "out=o", code=3)
    assert (tmp_path / "o/small/summary.json").exists()


def test_weights_may_be_the_folder_of_a_text_encoder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text_tables(tmp_path / "words", 3)
    save_bert(tmp_path / "bert")
    save_bert(tmp_path / "other", seed=1)
    (tmp_path / "t.toml").write_text(
        'title = "t"\noptions = ["data=words", "backbone=bert-base-uncased"]\n'
        '[[row]]\nname = "one"\nmethod = "simplecil"\n'
    )
    for _ in range(2):
        ostinato(capsys, "reproduce", "t.toml", "out=o", "backbone.weights=bert")
    assert (tmp_path / "o/one/summary.json").exists()
    text = ostinato(capsys, "reproduce", "t.toml", "out=o", "backbone.weights=other", code=2)
    assert "weights were other ones" in text

    def offline(name):
        raise InputError(f"backbone: the weights of {name!r} could not be fetched.")

    monkeypatch.setattr("ostinato.backbones.weights.load_backbone", offline)
    text = ostinato(capsys, "reproduce", "t.toml", "out=p", code=3)
    assert "backbone.weights.bert-base-uncased=FOLDER (huggingface.co/bert-base-uncased has it)" in text


def test_collect_replaces_what_is_between_the_markers(done, capsys, monkeypatch):
    monkeypatch.chdir(done)
    page = done / "page.md"
    page.write_text("Before \\1.\n\n<!-- table:mine -->\nold\n<!-- /table:mine -->\n\nAfter.\n")
    ostinato(capsys, "reproduce", "mine.toml", "out=out", "--collect", page)
    once = page.read_text()
    assert once.startswith("Before \\1.\n\n<!-- table:mine -->\n| row |")
    assert once.endswith("<!-- /table:mine -->\n\nAfter.\n")
    assert "old" not in once
    for heading in ("last %", "average %", "forgetting %", "task id %", "task-incremental %", "trainable", "stored"):
        assert f"| {heading} |" in once
    assert re.search(r"^ostinato run dualprompt .* out=out/prompts   # prompts$", once, re.MULTILINE)
    ostinato(capsys, "reproduce", "mine.toml", "out=out", "--collect", page)
    assert page.read_text() == once
    page.write_text("no markers")
    assert "<!-- table:mine -->" in ostinato(capsys, "reproduce", "mine.toml", "out=out", "--collect", page, code=2)


def test_without_a_table_they_are_listed(capsys):
    found = json.loads(ostinato(capsys, "reproduce", "--json"))
    assert set(found["tables"]) == set(table_names())
    assert "dualprompt" in found["presets"]["cifar100"]
    assert "soft_tf/table1" in ostinato(capsys, "reproduce")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('title = "t"', "row"),
        ('title = "t"\nrows = []\n[[row]]\nname = "a"\nmethod = "l2p"', "Did you mean 'row'"),
        ('title = "t"\n[[row]]\nname = "a"', "must have a preset or a method"),
        ('title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\nnot_run = "x"', "must have a preset or a method"),
        ('title = "t"\n[[row]]\nname = "a"\nmethd = "l2p"', "Did you mean 'method'"),
        ('title = "t"\n[[row]]\nname = "../a"\nmethod = "l2p"', "row.0.name"),
        ('title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\n[[row]]\nname = "a"\nmethod = "l2p"', "twice"),
        ('title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\npublished = { lats = 3.0 }', "row.0.published.lats"),
        ('title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\noptions = ["epochs"]', "key=value"),
        ("title", "not TOML"),
    ],
)
def test_a_wrong_table_is_refused(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        reproduce.read_table("t.toml")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method=l2p"], "method must be a FILE"),
        (["train.epoch=3"], "Did you mean 'epochs'"),
        (["method.topk=3"], "Did you mean 'top_k'"),
        (["seed=1", "seed=2"], "given twice"),
        (["nonsuch"], "no row 'nonsuch'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_runs(words, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text('title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\noptions = ["data=digits"]')
    assert says in ostinato(capsys, "reproduce", "t.toml", *words, code=2)
    assert not (tmp_path / "runs").exists()


VARIANTS = """
title = "Twice"
options = ["precision=fp32", "data=photos", "stream.step=2"]

[[variant]]
name = "two"

[[variant]]
name = "one"
options = ["stream.step=1", "data.limit_per_class=4"]

[[row]]
name = "ncm"
method = "simplecil"
options = ["data.limit_per_class=6"]

[[row]]
name = "other"
method = "simplecil"
options = ["preprocess=unit"]
"""
QUOTED = VARIANTS + "published_in = { two = { last = 80.0 }, one = { last = 70.0, forgetting = 2.5 } }\n"


def test_every_row_runs_in_every_variant(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    (tmp_path / "twice.toml").write_text(VARIANTS)
    out = ostinato(capsys, "reproduce", "twice.toml", "ncm", "other-one", "out=t")
    assert "other-two: " not in out
    names = {"ncm-two": ("2", "6"), "ncm-one": ("1", "6"), "other-one": ("1", "4")}
    for name, (step, limit) in names.items():  # a row's own options win over those of the variant
        config = (tmp_path / "t" / name / "config.toml").read_text()
        assert f"step = {step}" in config
        assert f"limit_per_class = {limit}" in config
    last = [json.loads((tmp_path / "t" / n / "summary.json").read_text())["last_accuracy"] * 100 for n in names]
    lines = (tmp_path / "t" / "table.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0][:4] == ["row", "two last %", "one last %", "mean last %"]
    mean, spread = (last[0] + last[1]) / 2, abs(last[0] - last[1]) / 2**0.5
    assert cells[2][:4] == ["ncm", f"{last[0]:.1f}", f"{last[1]:.1f}", f"{mean:.1f} ± {spread:.1f}"]
    assert "ncm, mean of 2" in out
    assert f"{mean:.1f} ± {spread:.1f}" in out
    assert "other, mean" not in out, "of one there is none"
    assert cells[3][:4] == ["other", "-", f"{last[2]:.1f}", f"{last[2]:.1f}"]
    assert sum("   # " in line for line in lines) == 3
    dry = ostinato(capsys, "reproduce", "twice.toml", "two", "--dry-run", "out=t")
    assert [line.split(":")[0] for line in dry.splitlines() if not line.startswith(" ")] == ["ncm-two", "other-two"]


def test_published_results_of_variants_stand_beside_the_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(workplace(tmp_path))
    (tmp_path / "twice.toml").write_text(QUOTED)
    ostinato(capsys, "reproduce", "twice.toml", "other-one", "out=t")
    lines = (tmp_path / "t" / "table.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    other = dict(zip(cells[0], cells[3], strict=True))
    assert (other["published two last %"], other["two last %"]) == ("80.00", "-")
    assert (other["published one last %"], other["published mean last %"]) == ("70.00", "70.00"), "of what has run"
    assert other["one last %"] == other["mean last %"] != "-"
    assert other["published mean forgetting %"] == "2.50"


def test_rows_of_another_table(tmp_path):
    """Their options win over the table's, which win over the other's; they quote nothing; its own rows come last."""
    workplace(tmp_path)
    (tmp_path / "again.toml").write_text(
        'title = "Again"\nrows_of = "mine.toml"\noptions = ["stream.step=1", "train.epochs=7", "seed=3"]\n'
        '[[row]]\nname = "more"\nmethod = "l2p"\npublished = { last = 3.0 }\n'
    )
    rows = reproduce.read_table(str(tmp_path / "again.toml")).rows
    assert [row.name for row in rows] == ["ncm", "prompts", "more"], "quoted rows stay there"
    assert [row.published for row in rows] == [{}, {}, {"last": 3.0}]
    assert [row.costs for row in rows] == [{}] * 3
    assert rows[0].words == (
        "stream.step=1", "precision=fp32", "data.limit_per_class=6", "checkpoint.every=1", "train.epochs=7", "seed=3",
        "data=photos",
    )  # fmt: skip
    assert [row.note for row in rows] == [None] * 3, "a row that quotes may speak of it"
    assert {"stream.step=1", "train.epochs=1", "data=photos", "method.e_layers=5"} < set(rows[1].words)
    small, whole = (reproduce.read_table(f"ostinato/cifar100_{name}") for name in ("small", "methods"))
    assert [row.name for row in small.rows] == list(dict.fromkeys(row.base for row in whole.rows))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (VARIANTS.replace('name = "one"', 'name = "ncm"'), "names of rows must be unique, 'ncm' is given twice"),
        (VARIANTS.replace('name = "one"', 'name = "one-two"'), "name"),
        (VARIANTS + "published = { last = 9.0 }\n", "use published_in.<variant>"),
        (VARIANTS + "published_in = { tow = { last = 9.0 } }\n", "no variant 'tow'. Did you mean 'two'"),
    ],
)
def test_wrong_variants_are_refused(text, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        reproduce.read_table("t.toml")
