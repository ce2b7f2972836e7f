"""The first row of every published table runs: on the bundled encoder, texts and CLIP on tiny random models."""

import json
from contextlib import chdir

import pytest
from tests.conftest import save_bert, save_clip, text_tables

from ostinato.cli import main
from ostinato.config import read_toml
from ostinato.presets import table_names
from ostinato.reproduce import read_table

SMALL = ("train.epochs=1", "data.limit_per_class=2", "data.test_limit_per_class=2", "device=cpu")
BUNDLED = ("backbone=vit_mini_patch8_32.glyphs", "backbone.readout=cls", "stream.first=5", "stream.step=5")
FEW = {
    "cl_lora": ("method.rank=2",), "lieprompt": ("method.align.epochs=1", "method.align.samples=4"),
    "layer_grouped": ("method.align.epochs=1", "method.align.samples=4"), "bic": ("method.memory.size=40",),
}  # fmt: skip
"""What else keeps a method's row short."""

SETS = {"ag_news": 4, "yelp_review_full": 5, "amazon_review_full": 5, "yahoo_answers_topics": 10, "dbpedia_14": 14}


def run_first(name, root, *words):
    """Run the first row that a table runs; its configuration and summary."""
    table = read_table(name)
    row = next(row for row in table.rows if row.not_run is None)
    first = [*words, *FEW.get(str(row.method), ())]
    with chdir(root):
        main(["reproduce", name, row.name, f"out={root / 'out'}", *first])
    run = root / "out" / row.name
    text = (root / "out/table.md").read_text()
    assert f"| {row.base} |" in text
    return row, read_toml(run / "config.toml"), json.loads((run / "summary.json").read_text())


TABLES = [name for name in table_names() if not name.startswith("ostinato/")]
OTHERS = ("soft_tf/table2", "soft_tf/table5")
"""On texts and on CLIP."""


def on_images():
    """Tables on images with the first row that they run; of equal rows, the first."""
    found = {}
    for name in TABLES:
        row = next(row for row in read_table(name).rows if row.not_run is None)
        found.setdefault((row.method, row.preset and row.preset.name, row.words), name)
    return [name for name in found.values() if name not in OTHERS]


@pytest.mark.parametrize("name", on_images())
def test_the_first_row_of_a_table_runs_on_the_bundled_encoder(name, tmp_path, monkeypatch):
    for figure in ("accuracy_curve", "accuracy_heatmap"):  # they take as long as the run
        monkeypatch.setattr(f"ostinato.report.plots.{figure}", lambda *_: None)
    row, config, summary = run_first(name, tmp_path, "data=digits", *BUNDLED, *SMALL)
    assert (summary["tasks"], summary["classes"]) == (2, 10)
    assert config["method"]["name"] == row.method
    assert config["precision"] == "fp32"
    batches = "eval.protocol=batch" in row.words
    assert (summary.get("batch_last_eval_seconds") is not None) == batches
    assert batches or summary["last_eval_seconds"] < summary["eval_seconds"], "of the second of two tasks alone"


def test_the_first_row_of_texts_runs_on_a_tiny_encoder(tmp_path):
    for i, (name, n) in enumerate(SETS.items()):
        text_tables(tmp_path / "words" / name, n, seed=i)
    save_bert(tmp_path / "bert")
    _, config, summary = run_first(
        "soft_tf/table2", tmp_path, "data=words", "backbone.weights=bert", "data.limit_per_task=14",
        "data.test_limit_per_task=14", "train.epochs=1", "device=cpu",
    )  # fmt: skip
    assert summary["tasks"] == 5
    assert config["data"]["alike"] is True


def test_the_first_row_of_clip_runs_on_a_tiny_model(tmp_path):
    save_clip(tmp_path / "clip")
    _, _, summary = run_first(
        "soft_tf/table5", tmp_path, "data=digits", "backbone.weights=clip", "stream.first=5", "stream.step=5",
        "data.limit_per_class=2", "data.test_limit_per_class=2", "device=cpu",
    )  # fmt: skip
    assert summary["task_incremental_forgetting"] is not None
