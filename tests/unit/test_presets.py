"""Presets: every value is known to the package, and says where it comes from."""

from contextlib import chdir
from itertools import pairwise
from pathlib import Path

import pytest
from tests.conftest import BLUE, RED, photos

from ostinato.cli import main
from ostinato.config import build_config, flat, read_toml
from ostinato.contract.toys import random_backbone
from ostinato.errors import InputError
from ostinato.learner import check_recipe
from ostinato.presets import DATA, METRICS, preset_names, read_preset
from ostinato.registry import check_options, get_method

NAMES = preset_names()


def options(name: str):
    """The checked configuration of a preset."""
    return build_config(read_preset(name).options, {"data": {"path": "digits"}})


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_its_name_says(name):
    preset = read_preset(name)
    benchmark, stem = name.split("/")
    assert preset.method == stem.split("-")[0]
    assert preset.data == benchmark if benchmark in DATA else benchmark.startswith(f"{preset.data}_")
    assert preset.options["stream"]["first"] == preset.options["stream"]["step"]
    assert "." in preset.options["backbone"]["name"], "weights are named with their tag"
    assert preset.options["preprocess"] == "unit"


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
    soft = options("imagenet_r/soft_tf")
    assert soft.train.overrides()["lr"] == pytest.approx(0.005 * 24 / 256)
    assert (soft.train.overrides()["epochs"], soft.method.options()["e_length"]) == (50, 20)
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
