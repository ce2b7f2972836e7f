"""Analyses of runs: what the tables say against the hooks they come from."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import RECORD
from torch import nn

from ostinato.analysis import ANALYSES, Subject, analyse, kinds, supported
from ostinato.analysis.attention import attend, watching
from ostinato.analysis.density import BINS, counts, shared_edges
from ostinato.analysis.layer_sweep import written
from ostinato.backbones import Edit, LinearEdit, prefix_from
from ostinato.cli import main
from ostinato.config import build_config
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import DataError, InputError
from ostinato.learner import Learner
from ostinato.lookup import get_method
from ostinato.methods.parts.task_edits import edited
from ostinato.registry import check_options
from ostinato.report import figures
from ostinato.report.console import Reporter
from ostinato.runs.lifecycle import start
from ostinato.runs.rundir import RunDir
from ostinato.streams import StreamOptions, TaskStream, open_source

METHODS = {
    "soft_tf": {"layers": [10, 11], "variant": "attn"},
    "lieprompt": {"align": {"epochs": 1, "samples": 8}, "layer_topk": 2, "add_num": 2},
    "cl_lora": {},
    "l2p": {"pool_size": 6, "top_k": 2},
    "simplecil": {},
}
SAVED = ("lieprompt", "cl_lora")
TASKS = [["0", "1"], ["2", "3"]]
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes the run of a method, or for those that need no data a saved learner, when it is first asked for."""
    root = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        if not (root / name).exists() and name in SAVED:
            learner = Learner(name, precision="fp32", train={"epochs": 1}, **METHODS[name])
            for task in TaskStream(open_source("digits"), StreamOptions(tasks=TASKS, limit_per_class=12)):
                learner.learn(task)
            learner.save(root / name)
        elif not (root / name).exists():
            config = build_config(
                {
                    "method": {"name": name} | METHODS[name],
                    "data": {"path": "digits", "limit_per_class": 12},
                    "stream": {"tasks": TASKS},
                    "train": {"epochs": 1},
                    "eval": {"split": "validation" if name == "soft_tf" else "test"},
                    "precision": "fp32",
                }
            )
            start(config, root / name, Reporter())
        return root / name

    return run


@pytest.fixture(scope="module")
def stream():
    return TaskStream(open_source("digits"), StreamOptions(tasks=TASKS))


@pytest.fixture(scope="module")
def tests(stream):
    """The held-out digits of both tasks."""
    return [stream.test(i) for i in range(2)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory, tests):
    """Two held-out digits as files."""
    root = tmp_path_factory.mktemp("digits")
    files = [root / "a.png", root / "b.png"]
    tests[0].raw(0).save(files[0])
    tests[1].raw(3).save(files[1])
    return files


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def made(run: Path, kind: str, *images: Path, **more) -> list[dict[str, str]]:
    written = analyse(run, kind, images, **more)
    assert written.png.read_bytes()[:4] == PNG
    with Image.open(written.png) as picture:
        assert picture.width == 1200
    return rows(written.csv)


def pixels(learner, examples) -> torch.Tensor:
    seen = examples.with_transform(learner.eval_transform)
    return torch.stack([seen[i][0] for i in range(len(seen))])


# What there is


def test_kinds_follow_hooks(runs):
    every = {"attention", "task_confusion"}
    assert set(kinds(runs("simplecil"))) == every
    assert set(kinds(runs("soft_tf"))) == every | {"mask_density", "mask_path", "prompt_usage", "weight_density"}
    assert set(kinds(runs("lieprompt"))) == every | {"layer_importance", "prompt_usage"}
    assert set(kinds(runs("cl_lora"))) == every | {"block_weights"}
    assert set(kinds(runs("l2p"))) == every | {"prompt_usage"}
    assert set(kinds(runs("l2p").parent)) == {"layer_sweep", "radar"}
    assert set(kinds(runs("soft_tf") / "artifact")) == set(kinds(runs("soft_tf")))


def test_a_new_method_gets_what_its_hooks_allow():
    class Bare(nn.Module):
        backbone = SimpleNamespace(patch=4)

        def usage(self, x):
            return x

    assert supported(Bare()) == ["attention", "prompt_usage", "task_confusion"]  # pyright: ignore


def test_what_does_not_fit_is_refused(runs, digits):
    run = runs("simplecil")
    with pytest.raises(InputError, match=r"simplecil does not support it. It supports attention, task_confusion\."):
        analyse(run, "layer_importance")
    with pytest.raises(InputError, match=r"no analysis 'mask_densty'.*mask_density"):
        analyse(run, "mask_densty")
    with pytest.raises(InputError, match="attention does not use task"):
        analyse(run, "attention", digits, task=1)
    with pytest.raises(InputError, match="task_confusion does not use images"):
        analyse(run, "task_confusion", digits)
    with pytest.raises(InputError, match="attention: give 1 to 24 image files"):
        analyse(run, "attention")
    with pytest.raises(InputError, match="needs a run or an artifact"):
        analyse(run.parent, "attention", digits)
    with pytest.raises(InputError, match="is no directory"):
        analyse(run / "nowhere", "attention", digits)
    assert not (run / "analysis" / "layer_importance.png").exists()


# Learned numbers


def test_layer_importance(runs):
    run = runs("lieprompt")
    table = made(run, "layer_importance")
    shares = Learner.load(run).method.layer_importance()
    assert shares.shape == (2, 12)
    got = torch.zeros(2, 12)
    for row in table:
        got[int(row["task"]) - 1, int(row["layer"])] = float(row["importance"])
    assert torch.equal(got, shares)


def test_block_weights(runs):
    run = runs("cl_lora")
    table = made(run, "block_weights")
    method = Learner.load(run).method
    mu, norms = method.block_weights().detach(), method.adapter_norms()
    assert len(table) == 2 * 6 * 2
    for row in table:
        task, block, part = int(row["task"]) - 1, int(row["layer"]) - 6, "qv".index(row["map"])
        assert float(row["mu"]) == pytest.approx(float(mu[task, 2 * part, block]), rel=1e-7)
        assert float(row["update_norm"]) == pytest.approx(float(norms[task, block, part]), rel=1e-7)
    assert float(norms.min()) > 0


def test_mask_density(runs, tmp_path):
    run = runs("soft_tf")
    table = made(run, "mask_density")
    method = Learner.load(run).method
    assert {(r["layer"], r["map"]) for r in table} == {(str(i), m) for i in (10, 11) for m in "qkv"}
    edges = np.array([float(r["from"]) for r in table[:BINS]] + [float(table[BINS - 1]["to"])])
    for at in range(0, len(table), BINS):
        part = table[at : at + BINS]
        name = f"{part[0]['layer']}.{part[0]['map']}"
        assert [float(r["from"]) for r in part] == list(edges[:-1])  # shared bins
        values = torch.cat([method.mask_values(task)[name].flatten() for task in (0, 1)]).double().numpy()
        assert sum(int(r["count"]) for r in part) == len(values)
        middle = len(part) // 2
        below = sum(int(r["count"]) for r in part[:middle])
        assert abs(below - (values < edges[middle]).sum()) <= 1  # the table's edges have nine digits
        assert part[0]["task"] == "all"
    one = made(run, "mask_density", task=2, out=tmp_path)
    assert {r["task"] for r in one} == {"2"}
    name = f"{one[0]['layer']}.{one[0]['map']}"
    assert sum(int(r["count"]) for r in one[:BINS]) == method.mask_values(1)[name].numel()
    for wrong in (0, 3):
        with pytest.raises(InputError, match=rf"task must lie in \[1, 2\], .* got {wrong}"):
            analyse(run, "mask_density", task=wrong)


def test_weight_density(runs, tmp_path):
    """Both kinds of weights fill the same bins, and a mask moves some of them."""
    table = made(runs("soft_tf"), "weight_density", task=1, out=tmp_path)
    method = Learner.load(runs("soft_tf")).method
    width, qkv = method.backbone.arch.dim, method.backbone.encoder.blocks[10].attn.qkv.weight
    frozen, masked = method.masked_weights(0)["10.k"]
    assert torch.equal(frozen, qkv[width : 2 * width])
    assert torch.equal(masked, frozen * method.mask_values(0)["10.k"])
    assert not torch.equal(masked, frozen)
    found = {
        kind: [int(r["count"]) for r in table if (r["layer"], r["map"], r["weights"]) == ("10", "k", kind)]
        for kind in ("frozen", "masked")
    }
    edges = np.array([float(r["from"]) for r in table[:BINS]])
    assert edges[0] == pytest.approx(-max(float(w.abs().max()) for p in method.masked_weights(0).values() for w in p))
    for kind, weights in (("frozen", frozen), ("masked", masked)):
        assert sum(found[kind]) == weights.numel()
        assert sum(found[kind][: BINS // 2]) == pytest.approx(int((weights < edges[BINS // 2]).sum()), abs=1)
    with pytest.raises(InputError, match="simplecil does not support it"):
        analyse(runs("simplecil"), "weight_density")


def test_the_path_between_masks(runs, tmp_path):
    """Its ends are the scores under the masks of one task and of the other."""
    table = made(runs("soft_tf"), "mask_path", task=2, out=tmp_path)
    assert [(r["task"], r["towards"]) for r in table] == [("2", "1")] * 9
    learner = Learner.load(runs("soft_tf"))
    method, group = learner.method, Subject(runs("soft_tf"), learner).held_out()[1]
    x = pixels(learner, group)
    labels = torch.from_numpy(np.asarray(group.labels))
    with torch.inference_mode():
        own = method.scores_given_task(x, torch.ones(len(x), dtype=torch.int64))[:, 2:4]
        masks, prompts = method.linear(0), method.prompts.under(1)
        states = method.shared(x)
        other = method.head(method.prompts.read(states, edited(prompts, masks), start=method.split))[:, 2:4]
    for share, logits in (("0", own), ("1", other)):
        (row,) = (r for r in table if r["share"] == share)
        loss = torch.nn.functional.cross_entropy(logits, labels - 2)
        assert float(row["loss"]) == pytest.approx(float(loss), rel=1e-4)
        assert float(row["accuracy"]) == pytest.approx(float((logits.argmax(1) == labels - 2).float().mean()))
    assert len({row["loss"] for row in table}) == len(table)


def test_bins():
    edges = shared_edges(0.0, 101.0)
    got = counts(torch.tensor([0.0, 0.5, 1.0, 100.0, 101.0]), edges)
    assert (got[0], got[1], got[100], got.sum()) == (2, 1, 2, 5)
    still = shared_edges(1.0, 1.0)
    assert (still[0], still[-1]) == pytest.approx((0.99, 1.01))
    assert counts(torch.ones(7), still)[BINS // 2] == 7


# Held-out images


def test_usage_of_a_pool(runs, tests):
    run = runs("l2p")
    table = made(run, "prompt_usage")
    learner = Learner.load(run, precision="fp32")
    learner.method.eval()
    assert len(table) == 2 * 6
    for task in (0, 1):
        x = pixels(learner, tests[task])
        with torch.inference_mode():
            ids = Counter(learner.method.pool.select(learner.method.query(x))[0].flatten().tolist())
        mine = [r for r in table if r["true_task"] == str(task + 1)]
        assert [r["prompt"] for r in mine] == [str(m) for m in range(6)]
        assert [float(r["chosen"]) for r in mine] == [ids[m] for m in range(6)]
        assert {r["images"] for r in mine} == {str(len(x))}
        assert sum(float(r["per_image"]) for r in mine) == pytest.approx(2)


def test_usage_is_what_the_method_says(runs, tests):
    learner = Learner.load(runs("l2p"), precision="fp32")
    learner.method.usage = lambda x: torch.full((len(x), 3), 0.25)
    findings = ANALYSES["prompt_usage"].find(Subject(runs("l2p"), learner))
    assert [row[3:] for row in findings.rows if row[0] == 2] == [(len(tests[1]) / 4, 0.25)] * 3


def test_confusion_of_methods_that_infer(runs, stream):
    run = runs("soft_tf")
    table = made(run, "task_confusion")
    usage = made(run, "prompt_usage")
    learner = Learner.load(run, precision="fp32")
    learner.method.eval()
    assert {r["found_by"] for r in table} == {"inferred_task"}
    for task in (0, 1):
        with torch.inference_mode():
            inferred = learner.method.infer_task(pixels(learner, stream.task(task).validation))
        found = torch.bincount(inferred, minlength=2).tolist()
        assert [int(r["images"]) for r in table if r["true_task"] == str(task + 1)] == found
        assert [float(r["chosen"]) for r in usage if r["true_task"] == str(task + 1)] == found
        assert [r["prompt_of_the_inferred_task"] for r in usage if r["true_task"] == str(task + 1)] == ["1", "2"]
        assert sum(float(r["share"]) for r in table if r["true_task"] == str(task + 1)) == pytest.approx(1)
    right = int(table[0]["images"]) + int(table[3]["images"])
    measured = json.loads((run / "summary.json").read_text())["task_id_accuracy"]
    assert right / sum(int(r["images"]) for r in table) == pytest.approx(measured)


def test_confusion_of_other_methods(runs, tests):
    run = runs("simplecil")
    table = made(run, "task_confusion")
    learner = Learner.load(run, precision="fp32")
    assert {r["found_by"] for r in table} == {"task_of_the_predicted_class"}
    for task in (0, 1):
        found = torch.bincount(learner.scores(pixels(learner, tests[task])).argmax(1) // 2, minlength=2).tolist()
        assert [int(r["images"]) for r in table if r["true_task"] == str(task + 1)] == found


def test_data_must_be_the_run_s(runs, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs("simplecil"), run)
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace('"1"', '"4"'))
    with pytest.raises(InputError, match="must be the ones that the run learned"):
        analyse(run, "task_confusion")
    (run / "config.toml").write_text(text)
    about = RunDir(run).read_record().model_dump()
    about["stream"]["tasks"][0]["digests"]["test"] = "0" * 64
    RunDir(run).write_record(about)
    with pytest.raises(InputError, match="must be those that the run was scored on"):
        analyse(run, "task_confusion")
    with pytest.raises(InputError, match="is no run directory"):
        analyse(run / "artifact", "task_confusion")


# Layers


def finished(
    root: Path, name: str, layers, last: float, given: float | None, backbone="vit", epochs=5, depth=12, **method
) -> None:
    (root / name).mkdir(parents=True)
    options = {"layers": layers} if layers is not None else {}
    config = build_config({"method": {"name": "soft_tf"} | options | method})
    # As a run records them: default layers are those of its own encoder.
    known = check_options(get_method("soft_tf"), config.method.options(), depth)
    record = RECORD | {"method": "soft_tf", "options": known, "recipe": {"epochs": epochs, "lr": 0.1}}
    RunDir(root / name).write_record(record)
    import tomli_w

    (root / name / "config.toml").write_text(tomli_w.dumps(config.to_dict()))
    summary = {"method": "soft_tf", "stream": "digits", "tasks": 2, "classes": 4, "last_accuracy": last}
    summary["backbone"] = backbone
    if given is not None:
        summary["task_incremental_accuracy"] = given
    (root / name / "summary.json").write_text(json.dumps(summary))


def test_layer_sweep(runs, tmp_path, monkeypatch):
    finished(tmp_path, "c", [9, 10, 11], 0.9, 0.95)
    finished(tmp_path, "b/deep", [3, 4, 5], 0.7, None)
    finished(tmp_path, "default", None, 0.8, 0.85)
    finished(tmp_path, "ff", [11], 0.5, 0.6, variant="ff")
    finished(tmp_path, "c/learn-001", [0], 0.1, 0.1)
    (tmp_path / "unfinished").mkdir()
    shutil.copy(tmp_path / "c" / "config.toml", tmp_path / "unfinished")
    shutil.copytree(runs("simplecil"), tmp_path / "other")
    drawn = []
    monkeypatch.setattr(
        "ostinato.analysis.layer_sweep.placements",
        lambda series, places, *a, **k: (drawn.append((series, places)), figures.placements(series, places, *a, **k)),
    )
    done = analyse(tmp_path, "layer_sweep")
    assert done.png.read_bytes()[:4] == PNG
    assert done.notes == ("Left out, without an option method.layers: other.",)
    got = [(r["run"], r["variant"], r["layers"], r["last_accuracy"], r["task_incremental_accuracy"])
           for r in rows(done.csv)]  # fmt: skip
    assert got == [
        ("b/deep", "attn+proj", "3-5", "0.7", ""),
        ("c", "attn+proj", "9-11", "0.9", "0.95"),
        ("default", "attn+proj", "9-11", "0.8", "0.85"),
        ("ff", "ff", "11", "0.5", "0.6"),
    ]
    ((series, places),) = drawn
    assert places == ["11", "3-5", "9-11"]
    one, two = series
    assert (one.name, two.name) == ("attn+proj", "ff")
    assert one.x.tolist() == [1, 2]
    assert one.last.tolist() == pytest.approx([0.7, 0.85])  # equal placements are averaged
    assert math.isnan(one.given[0])
    assert one.given[1] == pytest.approx(0.9)
    assert (two.x.tolist(), two.last.tolist()) == ([0], [0.5])


def test_layer_sweep_averages_only_what_is_the_same_experiment(tmp_path, monkeypatch):
    finished(tmp_path, "a", [4, 5], 0.8, None, depth=6)
    finished(tmp_path, "b", [4, 5], 0.2, None, depth=6, backbone="bert")
    finished(tmp_path, "c", [4, 5], 0.4, None, depth=6, epochs=1)
    finished(tmp_path, "d", [4, 5], 0.6, None, depth=6, base="none")
    finished(tmp_path, "e", None, 0.5, None, depth=6)
    drawn = []
    monkeypatch.setattr(
        "ostinato.analysis.layer_sweep.placements", lambda series, places, path, *_, **__: drawn.append(series)
        or path.write_bytes(b"")
    )  # fmt: skip
    done = analyse(tmp_path, "layer_sweep")
    assert [r["layers"] for r in rows(done.csv)] == ["4,5"] * 5, "a shallow encoder's default is where it was"
    lines = {s.name: s.last.tolist() for s in drawn[0]}
    assert sorted(lines.values()) == [[0.2], [0.4], [0.6], [pytest.approx(0.65)]]
    assert any("train.epochs=1" in name for name in lines)
    assert any("method.base=" in name and "none" in name for name in lines)


def test_what_moves_with_the_edited_layers_does_not_part_a_sweep(tmp_path, monkeypatch):
    for layers in ([3, 4, 5], [9, 10, 11]):
        experts = {"name": "dualprompt", "e_layers": layers}
        finished(tmp_path, f"both{layers[0]}", layers, layers[0] / 12, None, base=experts)
    finished(tmp_path, "fixed", [9, 10, 11], 0.1, None, base={"name": "dualprompt", "e_layers": [2, 3, 4]})
    drawn = []
    monkeypatch.setattr(
        "ostinato.analysis.layer_sweep.placements", lambda series, places, path, *_, **__: drawn.append(series)
        or path.write_bytes(b"")
    )  # fmt: skip
    analyse(tmp_path, "layer_sweep")
    assert sorted(s.last.tolist() for s in drawn[0]) == [[0.1], [0.25, 0.75]]


def test_radar_has_a_ray_per_stream_and_a_line_per_method(tmp_path, monkeypatch):
    def run(name, stream, value, **options):
        finished(tmp_path, name, [9, 10, 11], value, None, **options)
        path = tmp_path / name / "summary.json"
        seen = json.loads(path.read_text()) | {"stream": stream, "mean_task_accuracy": value}
        path.write_text(json.dumps(seen))

    run("a", "one", 0.9, task_id="gradient_id")
    run("a2", "one", 0.7, task_id="gradient_id")
    run("b", "two", 0.6, task_id="gradient_id", mask_init="kaiming")
    with pytest.raises(InputError, match="at least 3 streams"):
        analyse(tmp_path, "radar")
    run("c", "three", 0.5, task_id="prompt_id")
    run("d", "three", 0.4, task_id="gradient_id")
    drawn = []
    monkeypatch.setattr(
        "ostinato.analysis.radar.radar",
        lambda values, rays, *a, **k: (drawn.append((values, rays)), figures.radar(values, rays, *a, **k)),
    )
    done = analyse(tmp_path, "radar")
    assert done.png.read_bytes()[:4] == PNG
    ((values, rays),) = drawn
    assert rays == ["one, 2 tasks", "two, 2 tasks", "three, 2 tasks"]
    by_gradient, by_prompt = (values[f'soft_tf task_id="{name}_id"'] for name in ("gradient", "prompt"))
    assert by_gradient.tolist() == pytest.approx([0.8, 0.6, 0.4]), "the initial masks differ between streams only"
    assert np.isnan(by_prompt).tolist() == [True, True, False]
    assert {(r["run"], r["mean_task_accuracy"]) for r in rows(done.csv)} >= {("a", "0.9"), ("c", "0.5")}


def test_layer_sweep_without_runs(runs, tmp_path):
    with pytest.raises(InputError, match="there must be finished runs"):
        analyse(tmp_path, "layer_sweep")
    with pytest.raises(InputError, match=r"without it: simplecil"):
        analyse(runs("simplecil"), "layer_sweep")


def test_layers_are_written_short():
    assert [written(layers) for layers in (None, (4,), (4, 5), (4, 5, 6), (0, 3, 6))] == [
        "all", "4", "4,5", "4-6", "0,3,6",
    ]  # fmt: skip


# Attention


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("read", [None, slice(0, 1), slice(1, 4)])
@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=["samples", "tasks"])
def test_weights_reproduce_the_attention(lead, read):
    attn = random_backbone(depth=1).cast(torch.float64).encoder.blocks[0].attn
    low_rank = LinearEdit(down=draw(2, 16), up=draw(16, 2, seed=1))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 5 + [False]])
    hidden = torch.tensor([[True, True], [False, False], [True, False]])
    prompts = prefix_from(draw(3, 2, 2, 16, seed=2), 2)
    edits = [
        (None, Edit()),
        (mask, Edit(prefix=prompts, linear={"k": low_rank, "v": low_rank, "q": LinearEdit(mask=draw(16, 16, seed=3))})),
        (None, Edit(prefix=prompts, prefix_mask=hidden)),
        (mask, Edit(prefix=prompts, prefix_mask=hidden)),
    ]
    x = draw(*lead, 6, 16, seed=4)
    for visible, edit in edits:
        weights = attn.weights(x, visible, edit, read)
        p = 0 if edit.prefix is None else 2
        n = 6 if read is None else len(range(6)[read])
        assert weights.shape == (*lead, 2, n, p + 6)
        assert weights.dtype == torch.float32
        values = attn._project(x, edit)[2]
        if edit.prefix is not None:
            values = torch.cat([edit.prefix[1].expand(*lead, 2, 2, 8), values], dim=-2)
        mixed = (weights.double() @ values).transpose(-3, -2).flatten(-2)
        torch.testing.assert_close(attn.proj(mixed), attn(x, visible, edit, read), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        if edit.prefix_mask is not None:
            assert weights[..., 1, :, :, :2].abs().max() == 0


@pytest.mark.parametrize("name", METHODS)
def test_attention_table(runs, digits, name):
    run = runs(name)
    table = made(run, "attention", *digits)
    assert [(Path(r["image"]).name, r["layer"]) for r in table] == [
        (f, str(layer)) for f in ("a.png", "b.png") for layer in range(12)
    ]
    learner = Learner.load(run, precision="fp32")
    best = {p.source: p.classes[0] for p in learner.predict(digits)}
    prefixed = {"soft_tf": {0, 1, 10, 11}, "lieprompt": set(range(12)), "l2p": set(range(12))}.get(name, set())
    for row in table:
        assert row["predicted"] == best[row["image"]]
        assert int(row["task"]) == int(best[row["image"]]) // 2 + 1
        patches = [float(v) for k, v in row.items() if k.startswith("patch_")]
        assert len(patches) == 16
        prefix = float(row["prefix_share"])
        assert (prefix > 0) == (int(row["layer"]) in prefixed)
        assert sum(patches) + float(row["cls_share"]) + prefix == pytest.approx(1, abs=1e-5)


def image_of(learner, file) -> torch.Tensor:
    with Image.open(file) as picture:
        return learner.eval_transform(picture.convert("RGB"))


def failing(scores):
    def fail(x):
        scores(x)
        raise RuntimeError("stop")

    return fail


@pytest.mark.parametrize("name", METHODS)
def test_attention_leaves_nothing_behind(runs, digits, name, monkeypatch):
    learner = Learner.load(runs(name), precision="fp32", state_cache=0.1)
    x = image_of(learner, digits[0])
    before = learner.scores(x[None])
    first = attend(learner, x)  # features are cached by now, and yet every layer is watched
    frozen, backbone = learner.method.frozen, learner.method.backbone
    caches = frozen.feature_cache, frozen.state_cache
    assert torch.equal(learner.scores(x[None]), before)
    again = attend(learner, x)
    assert torch.equal(first.patches, again.patches)
    with watching(learner.method):
        assert all(block._forward_pre_hooks for block in backbone.encoder.blocks)
        assert "pool" in vars(backbone)
    monkeypatch.setattr(learner.method, "scores", failing(learner.method.scores))
    with pytest.raises(DataError, match="stop"):
        attend(learner, x)
    monkeypatch.undo()
    assert not any(block._forward_pre_hooks for block in backbone.encoder.blocks)
    assert "pool" not in vars(backbone)
    assert (frozen.feature_cache, frozen.state_cache) == caches
    assert None not in caches
    assert torch.equal(learner.scores(x[None]), before)


def captured(learner, x, monkeypatch) -> list[list[torch.Tensor]]:
    """The weights of every pass through every layer, taken where the values are weighed."""
    calls: list[list[torch.Tensor]] = []
    for block in learner.method.backbone.encoder.blocks:
        mine: list[torch.Tensor] = []
        calls.append(mine)
        plain = block.attn.forward

        def forward(h, mask, edit, read=None, *, attn=block.attn, mine=mine, plain=plain):
            mine.append(attn.weights(h, mask, edit, None))
            return plain(h, mask, edit, read)

        monkeypatch.setattr(block.attn, "forward", forward)
    learner.scores(x[None])
    return calls


@pytest.mark.parametrize("name", ["soft_tf", "cl_lora", "l2p"])
def test_attention_is_that_of_the_prediction(runs, digits, name, monkeypatch):
    """The CLS token for most, the mean over prompt tokens for L2P, the owner's pass where all tasks run."""
    learner = Learner.load(runs(name), precision="fp32")
    x = image_of(learner, digits[1])
    found = attend(learner, x)
    assert found.task == found.label // 2
    for layer, calls in enumerate(captured(learner, x, monkeypatch)):
        w = calls[-1]
        if w.ndim == 5:
            assert name == "cl_lora"
            assert layer >= 6
            w = w[found.task]
        read = slice(1, 11) if name == "l2p" else slice(0, 1)
        want = w[0][:, read, -16:].mean(1).unflatten(-1, (4, 4))
        torch.testing.assert_close(found.patches[layer], want)
    if name == "cl_lora":  # another task looks elsewhere
        other = calls[-1][1 - found.task][0][:, 0, -16:].unflatten(-1, (4, 4))
        assert not torch.allclose(other, found.patches[-1])


def test_one_head(runs, digits, tmp_path):
    run = runs("soft_tf")
    learner = Learner.load(run, precision="fp32")
    found = attend(learner, image_of(learner, digits[0]))
    table = made(run, "attention", digits[0], head=1, out=tmp_path)
    got = torch.tensor([[float(v) for k, v in r.items() if k.startswith("patch_")] for r in table])
    torch.testing.assert_close(got, found.patches[:, 1].flatten(1))
    assert {r["head"] for r in table} == {"1"}
    with pytest.raises(InputError, match=r"head must lie in .* got 99"):
        analyse(run, "attention", digits, head=99)
    with pytest.raises(DataError, match="missing"):
        analyse(run, "attention", [tmp_path / "missing.png"])


def test_a_mean_readout_averages_the_patches_rows(runs, digits):
    learner = Learner.load(runs("simplecil"), precision="fp32")
    learner.method.backbone.readout = "mean"
    x = image_of(learner, digits[0])
    found = attend(learner, x)
    backbone = learner.method.backbone
    block = backbone.encoder.blocks[0]
    h = backbone.embed(x[None]).h
    want = block.attn.weights(block.norm1(h), None, Edit())[0][:, 1:, 1:].mean(1)
    torch.testing.assert_close(found.patches[0].flatten(1), want)


# The command


def said(capsys, *words: str | Path) -> str:
    main(["analyse", *map(str, words)])
    return capsys.readouterr().out


def test_command(runs, digits, tmp_path, capsys):
    run = runs("soft_tf")
    assert [line.split()[0] for line in said(capsys, run).splitlines()] == list(kinds(run))
    text = said(capsys, run, "attention", digits[0].parent, "head=1", f"out={tmp_path}", "device=cpu")
    assert text == f"Written to {tmp_path / 'attention.png'} and {tmp_path / 'attention.csv'}\n"
    table = rows(tmp_path / "attention.csv")
    assert {(Path(r["image"]).name, r["head"]) for r in table} == {("a.png", "1"), ("b.png", "1")}
    done = json.loads(said(capsys, run, "mask_density", "task=1", f"out={tmp_path}", "--json"))
    assert {r["task"] for r in rows(Path(done["csv"]))} == {"1"}
    for words, message in (
        ([run, "block_weights"], "soft_tf does not support it. It supports attention, mask_density"),
        ([run, "mask_density", "task=one"], "task must be a whole number, counted from 1, got one"),
        ([run, "mask_density", "epochs=3"], "neither a file nor an option of analyse"),
        ([run, "mask_density", digits[0]], "mask_density does not use images"),
        ([run, "attention", "epochs=3"], "epochs=3"),
    ):
        with pytest.raises(SystemExit) as stop:
            said(capsys, *words)
        assert stop.value.code in (2, 3)
        assert message in capsys.readouterr().err
