"""Presets: every value is known to the package, and says where it comes from."""

from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pytest
from tests.conftest import BLUE, RED, photos

from ostinato.cli import main
from ostinato.config import build_config, flat, read_toml
from ostinato.contract.tiny_models import random_backbone
from ostinato.errors import InputError
from ostinato.lookup import get_method
from ostinato.presets import DATA, METRICS, preset_names, read_preset, table_file
from ostinato.registry import check_options
from ostinato.reproduce.table import read_table
from ostinato.training.recipes import check_recipe

NAMES = preset_names()


def options(name: str):
    """The checked configuration of a preset."""
    return build_config(read_preset(name).options, {"data": {"path": "digits"}})


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_whether_it_was_verified_and_what_is_published(name):
    preset = read_preset(name)
    assert preset.status.startswith(f"Preset {name}, not verified. Not run")
    for published in preset.provenance.get("published", []):
        assert published["source"] in preset.status
    if not preset.provenance.get("published"):
        assert preset.status.endswith("Published: nothing.")


@pytest.mark.parametrize("method", ["cl_lora", "lieprompt", "soft_tf", "l2p", "dualprompt", "coda_prompt"])
def test_a_preset_names_the_small_run_beside_the_public_code(method):
    preset = read_preset("cifar100", method)
    run = preset.provenance["compared"]
    assert f"{run['last']:.1f} % here, {run['public']:.1f} % there" in preset.status
    seeds = ", ".join(map(str, run["seeds"]))
    assert f"(seeds {seeds}, {run['date']}, {run['weights']}; {run['command']}, see docs/fidelity.md)" in preset.status
    page = Path(__file__).parents[2].joinpath("docs/fidelity.md").read_text(encoding="utf-8")
    assert f"{run['command']} out=" in page.replace("\\\n  ", ""), "the page has the command of the preset"


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_its_name_says(name):
    preset = read_preset(name)
    benchmark, stem = name.split("/")
    assert preset.method == stem.split("-")[0]
    assert preset.data == benchmark if benchmark in DATA else benchmark.startswith(f"{preset.data}_")
    assert preset.options["stream"]["first"] == preset.options["stream"]["step"]
    assert "." in preset.options["backbone"]["name"], "weights are named with their tag"
    assert (preset.options["preprocess"], preset.options["precision"]) == ("unit", "fp32")


@pytest.mark.parametrize("benchmark", sorted({name.split("/")[0] for name in NAMES}))
def test_a_benchmark_fixes_the_sizes_of_tasks(benchmark):
    steps = {read_preset(n).options["stream"]["step"] for n in NAMES if n.split("/")[0] == benchmark}
    assert len(steps) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_value_has_a_source_and_nothing_else_has(name):
    preset = read_preset(name)
    assert set(preset.provenance["sources"]) == set(flat(preset.options)) - {"method.name"}
    assert all(len(source) > 5 for source in preset.provenance["sources"].values())
    assert preset.provenance["verified"] is False
    assert preset.provenance["note"].startswith("Not run")
    assert preset.provenance["paper"]


@pytest.mark.parametrize("name", NAMES)
def test_published_results_have_a_source(name):
    preset = read_preset(name)
    published = preset.provenance.get("published", [])
    for result in published:
        numbers = {key: value for key, value in result.items() if key not in ("source", "protocol")}
        assert numbers
        assert set(numbers) <= set(METRICS)
        assert all(0 <= value <= 100 for value in numbers.values())
        assert result["source"]
    if preset.method in ("lieprompt", "layer_grouped"):
        assert not published, "none is known"


@pytest.mark.parametrize("name", NAMES)
def test_the_method_takes_the_options(name):
    """Each option is known and of its type, and the constructor accepts them together."""
    config = options(name)
    cls = get_method(config.method.name)
    checked = check_options(cls, config.method.options())
    check_recipe(config.train.overrides())
    cls(random_backbone(dim=16), **checked)


def test_values_as_the_sources_state_them():
    """A few, copied by hand from the tables of the public configurations."""
    cl_lora = options("imagenet_a/cl_lora")
    assert (cl_lora.train.overrides()["lr"], cl_lora.train.overrides()["weight_decay"]) == (0.05, 0.005)
    assert (cl_lora.method.options()["rank"], cl_lora.stream.order) == (10, "seed1993")
    assert cl_lora.train.overrides()["schedule"] == "cosine_per_epoch"
    soft = options("imagenet_r/soft_tf")
    assert soft.train.overrides()["lr"] == pytest.approx(0.005 * 24 / 256)
    assert (soft.train.overrides()["epochs"], soft.method.options()["base"]["e_length"]) == (50, 20)
    assert soft.backbone.name == "vit_base_patch16_224.orig_in21k", "Google's own checkpoint"
    lie = options("cifar100_b5_5/lieprompt-in1k")
    assert (lie.train.overrides()["lr"], lie.train.overrides()["weight_decay"]) == (0.01, 0.005)
    assert lie.backbone.name == "vit_base_patch16_224.augreg_in21k_ft_in1k"
    vtab = options("vtab/lieprompt").method.options()
    assert (vtab["length"], vtab["top_k"], vtab["add_num"]) == (50, 1, 2)


def test_the_ladder_goes_one_step_at_a_time():
    steps = [f"cifar100/layer_grouped{s}" for s in ("-independent", "-grouped", "-root", "-position", "")]
    changed = []
    for one, two in pairwise(steps):
        a, b = (options(s).method.options() for s in (one, two))
        changed.append([key for key in a if a[key] != b[key]])
    assert changed == [["groups"], ["root"], ["position"], ["fusion"]]


@pytest.mark.parametrize(
    ("name", "method", "says"),
    [
        ("cifar10", "l2p", "Did you mean 'cifar100'"),
        ("vtab", "dualprompt", "dualprompt has presets for cifar100, cifar100_20"),
        ("vtab", "joint", "joint has no preset"),
        ("cifar100/layer_grouped-groped", "layer_grouped", "layer_grouped-grouped"),
        ("cifar100/l2p", "dualprompt", "is for l2p"),
    ],
)
def test_a_wrong_name_gets_a_way_out(name, method, says):
    with pytest.raises(InputError, match=says):
        read_preset(name, method)


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    photos(tmp_path / "photos", {"red": RED, "blue": BLUE}, n=5)
    (tmp_path / "mine.toml").write_text("[stream]\nfirst = 1\nstep = 1\n[data]\ncrop = 0.9\nlimit_per_class = 5\n")
    words = ["data=photos", "data.crop=1.0", "backbone=vit_mini_patch8_32.glyphs", "precision=fp32", "out=run"]
    with chdir(tmp_path):
        main(["run", "simplecil", "-p", "cifar100", "-c", "mine.toml", *words])
    config = build_config(read_toml(tmp_path / "run/config.toml"))
    assert (config.preprocess, config.data.validation, config.stream.order) == ("unit", 0.0, "seed1993")
    assert (config.stream.step, config.data.limit_per_class) == (1, 5)
    assert config.data.crop == 1.0


def test_a_preset_wants_its_data_named(tmp_path, capsys):
    with chdir(tmp_path), pytest.raises(SystemExit) as stop:
        main(["run", "simplecil", "-p", "imagenet_r"])
    assert stop.value.code == 2
    assert "LAMDA-PILOT" in capsys.readouterr().err
    assert not Path(tmp_path, "runs").exists()


GOOD = """[method]
name = "l2p"
[provenance]
data = "cifar100"
paper = "p"
verified = false
note = "n"
[provenance.sources]
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed = ", "is not TOML"),
        ("seed = 1", "method: Field required"),
        (GOOD.replace("[method]\nname", "method"), "method: "),
        (GOOD.replace("[provenance", "[provenence"), "provenance: Field required"),
        (GOOD.replace("verified = false", "verified = 0"), "provenance.verified: "),
        (GOOD.replace('data = "cifar100"', "data = 3"), "provenance.data: "),
        (GOOD.replace("note", "notes"), "provenance.note: Field required"),
        (GOOD + "x = 3", "provenance.sources.x: "),
        (GOOD + "[provenance.compared]\nlast = 12.5", "provenance.compared.public: Field required"),
        (GOOD + "[[provenance.published]]\nlast = inf\nsource = 'x'", "provenance.published.0.last: "),
        ("format = 2\n" + GOOD, "format: "),
    ],
)
def test_a_damaged_preset_is_named(text, says, tmp_path, monkeypatch):
    monkeypatch.setattr("ostinato.presets._ROOT", tmp_path)
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine/l2p.toml"
    file.write_text(GOOD)
    assert read_preset("mine/l2p").data == "cifar100"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"^preset mine/l2p: .*{says}"):
        read_preset("mine/l2p")


ROW = 'title = "t"\n[[row]]\nname = "a"\nmethod = "l2p"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("format = 2\n" + ROW, r"format must be 1, got 2. Install a newer"),
        ("format = '1'\n" + ROW, r"format must be 1, got '1'"),
        ("format = true\n" + ROW, r"format "),
        ("title = 3\n" + ROW.partition("\n")[2], r"title: .*string, got 3"),
        ("title = 't'\nrow = 3", r"row: .*list, got 3"),
        ("title = 't'\nrow = [3]", r"row\.0: .*got 3"),
        ("title = 't'\nrow = []", r"a table must have at least 1 row. Add"),
        ("title = 't'\nrows_of = 'cifar100/l2p'", r"rows_of: .*there is no table 'cifar100/l2p'"),
        ("title = 't'\nrows_of = 'ostinato/cifar100_small'", r"rows_of must name a table with rows"),
        ("title = 't'\n[row]\nname = 'a'", r"row: .*list"),
        (ROW + "options = 'x=1'", r"row 'a', row\.0\.options: .*list, got 'x=1'"),
        (ROW + "options = [1]", r"row 'a', row\.0\.options\.0: .*string, got 1"),
        (ROW + "options = ['a..b=1']", r"row 'a': a\.\.b=1: the name of an option"),
        (ROW + "options = ['x=1', 'x=2']", r"row 'a': x=2: x is given twice"),
        (ROW + "published = { last = '3' }", r"row 'a', row\.0\.published\.last: .*number, got '3'"),
        (ROW + "published = { last = nan }", r"row 'a', row\.0\.published\.last: .*got nan"),
        (ROW + "published = { last = 1e9 }", r"row 'a', row\.0\.published\.last: .*100, got 1000000000"),
        (ROW + "published = { last = true }", r"row 'a', row\.0\.published\.last: "),
        (
            ROW + "published_in = { x = { last = 3 } }",
            r"row 'a': published_in: there is no variant 'x'. The table",
        ),
        (ROW + "published_in = { x = 3 }", r"row 'a', row\.0\.published_in\.x: "),
        (ROW + 'preset = "cifar10/l2p"', r"row 'a': preset: there is no 'cifar10/l2p'"),
        (ROW + 'label = "\\u001b[2J"', r"row 'a', row\.0\.label: .*pattern.*got '\\x1b"),
        (ROW.replace('"a"', '"' + "a" * 101 + '"'), r"row 'a+', row\.0\.name: .*100"),
        (ROW.replace('"a"', "2024-01-01"), r"row\.0\.name: "),
        (ROW + "x" * 5000 + " = 1", r"row 'a', row\.0\.'x+.*unknown key"),
        (ROW + "[[variant]]\nname = 'v'\noptions = {a = 1}", r"variant 'v', variant\.0\.options: .*list"),
        (ROW + "[[variant]]\nname = 'a-b'", r"variant 'a-b', variant\.0\.name: "),
        ("title = 't'\n" + "[[row]]\nname = 'a'\nmethod = 'l2p'\n" * 10_001, r"row: .*10000"),
        (ROW + "note = " + "[" * 5000, r"is not TOML: .*nested"),
        (".".join("x" * 9999) + " = 1", r"is not TOML: .*nested"),
    ],
)
def test_a_wrong_table_is_named_with_its_row_and_key(text, says, tmp_path):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(InputError, match=rf"t\.toml: {says}") as error:
        read_table(str(tmp_path / "t.toml"))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_runs_of_a_table_are_counted_before_they_are_made(tmp_path):
    rows = [f"[[row]]\nname = 'a{i}'\nmethod = 'l2p'\n[[variant]]\nname = 'v{i}'\n" for i in range(101)]
    (tmp_path / "t.toml").write_text("title = 't'\n" + "".join(rows))
    with pytest.raises(InputError, match="at most 10000 runs, got 10201"):
        read_table(str(tmp_path / "t.toml"))


def test_a_table_of_the_first_format_is_read(tmp_path):
    (tmp_path / "t.toml").write_text("\ufeffformat = 1\n" + ROW + "published = { forgetting = -1, last = 90 }")
    assert read_table(str(tmp_path / "t.toml")).rows[0].published == {"forgetting": -1.0, "last": 90.0}


@pytest.mark.parametrize(
    "name", ["\0.toml", "~nosuchuser/t.toml", "x" * 9999 + ".toml", "\ud800.toml", "\x1b.toml", "\0"]
)
def test_names_of_tables_that_are_none(name):
    with pytest.raises(InputError) as error:
        table_file(name)
    assert str(error.value).isprintable()
