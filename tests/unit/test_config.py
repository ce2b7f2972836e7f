"""Options from the command line and from TOML: how they are read, checked and written back."""

import datetime
import math
import time
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.config import (
    RunConfig,
    absolute,
    build_config,
    changeable,
    check_changes,
    merge,
    parse_overrides,
    read_toml,
)
from ostinato.errors import InputError
from ostinato.quoting import quoted
from ostinato.runs import options

MINIMAL = {"method": {"name": "simplecil"}}


def parsed(text):
    return parse_overrides([f"method.x={text}"])["method"]["x"]


# Values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("+3", 3),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        ("-1E2", -100.0),
        ("inf", math.inf),
        ("true", True),
        ("false", False),
        ("[1, 2]", [1, 2]),
        ("[]", []),
        ('["a", "b"]', ["a", "b"]),
        ("[[1], [2, 3]]", [[1], [2, 3]]),
        ("2,3,4", [2, 3, 4]),
        ("2, 3", [2, 3]),
        ("0.5,1", [0.5, 1]),
        ("3,", [3]),
        ("photos/", "photos/"),
        ("/a/b c/d.toml", "/a/b c/d.toml"),
        ("~/data", "~/data"),
        ("C:\\photos", "C:\\photos"),
        ("vit_tiny_patch16_224.augreg_in21k", "vit_tiny_patch16_224.augreg_in21k"),
        ("hub:owner/name", "hub:owner/name"),
        ("True", "True"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("a,b", "a,b"),
        ("1,b", "1,b"),
        ("2024-01-01", "2024-01-01"),
        ("{a = 1}", "{a = 1}"),
        ('"5"', "5"),
        ('"a = b"', "a = b"),
        ("'single'", "single"),
        ('"unclosed', '"unclosed'),
        ("k=v", "k=v"),
    ],
)
def test_values(text, value):
    got = parsed(text)
    assert got == value
    assert type(got) is type(value)


@settings(max_examples=60, deadline=None)
@given(
    value=st.one_of(
        st.integers(-(2**40), 2**40),
        st.floats(allow_nan=False, allow_infinity=False),
        st.lists(st.integers(-99, 99), min_size=2),
    )
)
def test_numbers_and_lists_read_back_as_written(value):
    text = repr(value) if not isinstance(value, list) else ",".join(map(str, value))
    assert parsed(text) == value


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="abcxyz/._-: ", min_size=1).map(lambda t: "p" + t))
def test_paths_and_names_need_no_quotes(text):
    assert parsed(text) == text


# Keys


def test_dotted_keys_nest_and_are_stripped():
    got = parse_overrides(["train.lr=0.1", "train.epochs=2", " seed =3"])
    assert got == {"train": {"lr": 0.1, "epochs": 2}, "seed": 3}


@pytest.mark.parametrize(
    ("pair", "want"),
    [
        ("data=photos/", {"data": {"path": "photos/"}}),
        ("method=l2p", {"method": {"name": "l2p"}}),
        ("backbone=vit.tag", {"backbone": {"name": "vit.tag"}}),
        ("eval=old/", {"eval": {"data": "old/"}}),
        ("device=cpu", {"device": "cpu"}),
    ],
)
def test_short_forms(pair, want):
    assert parse_overrides([pair]) == want


def test_short_and_long_forms_go_together():
    want = {"data": {"path": "photos/", "workers": 2}}
    assert parse_overrides(["data=photos/", "data.workers=2"]) == want
    assert parse_overrides(["data.workers=2", "data=photos/"]) == want


@pytest.mark.parametrize("word", ["photos/", "=3", "--step"])
def test_words_without_key_or_value_are_refused(word):
    with pytest.raises(InputError, match="written key=value, got"):
        parse_overrides([word])


def test_a_key_below_a_plain_value_is_refused():
    with pytest.raises(InputError, match=r"seed.x=1: 'seed' already has the plain value 3"):
        parse_overrides(["seed=3", "seed.x=1"])


# Precedence


def test_later_layers_win_key_by_key():
    first = {"method": {"name": "l2p", "top_k": 3}, "train": {"lr": 1.0, "epochs": 2}, "seed": 1}
    second = {"train": {"lr": 0.5}, "method": {"pull": 0.2}}
    config = build_config(first, second)
    assert config.train.overrides() == {"lr": 0.5, "epochs": 2}
    assert config.method.options() == {"top_k": 3, "pull": 0.2}
    assert (config.method.name, config.seed) == ("l2p", 1)
    assert build_config(second, first).train.overrides() == {"lr": 1.0, "epochs": 2}


def test_merging_changes_neither_side():
    base, over = {"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "b": {"z": 4}}
    assert merge(base, over) == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}
    assert merge(over, base) == {"a": {"x": 1, "y": 3}, "b": 2}
    merge(base, over)["a"]["x"] = 9
    assert (base, over) == ({"a": {"x": 1}, "b": 2}, {"a": {"y": 3}, "b": {"z": 4}})


def test_defaults():
    config = build_config(MINIMAL)
    assert config.method.options() == {}
    assert config.train.overrides() == {}
    assert (config.train.accumulate, config.seed, config.device, config.precision) == (1, 0, "auto", "auto")
    assert (config.data.path, config.data.validation, config.eval.split) == ("digits", 0.1, "test")


def test_accumulate_is_no_field_of_the_recipe():
    config = build_config(MINIMAL, parse_overrides(["train.accumulate=4", "train.lr=1e-3"]))
    assert config.train.accumulate == 4
    assert config.train.overrides() == {"lr": 1e-3}


def test_what_is_done_when_a_loss_explodes_is_no_field_of_the_recipe():
    assert build_config(MINIMAL).train.on_divergence == "warn"
    config = build_config(MINIMAL, parse_overrides(["train.on_divergence=stop", "train.lr=1e-3"]))
    assert config.train.on_divergence == "stop"
    assert config.train.overrides() == {"lr": 1e-3}
    with pytest.raises(InputError, match=r"train.on_divergence: .*'stop' or 'warn', got 'perhaps'"):
        build_config(MINIMAL, parse_overrides(["train.on_divergence=perhaps"]))


def test_numbers_may_stand_where_names_are_expected():
    assert build_config(MINIMAL, parse_overrides(["data=2024"])).data.path == "2024"


@pytest.mark.parametrize("name", ["1.10", "1_000", "1e3", "0x10", "true"])
def test_folders_named_like_numbers_keep_their_name(name):
    assert build_config(MINIMAL, parse_overrides([f"data={name}"])).data.path == name


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sede=3"], r"sede: unknown key. Did you mean 'seed'"),
        (["data.worker=2"], r"data.worker: unknown key. Did you mean 'data.workers'"),
        (["stream.stpe=2"], r"stream.stpe: unknown key. Did you mean 'stream.step'"),
        (["data.zzzzzzzzzz=2"], r"data.zzzzzzzzzz: unknown key."),
        (["seed=-1"], r"seed: .*greater than or equal to 0, got -1"),
        (["seed=many"], r"seed: .*integer.*, got 'many'"),
        (["data.validation=1"], r"data.validation: .*less than 1, got 1"),
        (["data.crop=0"], r"data.crop: .*greater than 0, got 0"),
        (["data.augment=mild"], r"data.augment: .*'auto', 'photo', 'glyph' or 'none', got 'mild'"),
        (["precision=fp16"], r"precision: .*'auto', 'fp32' or 'bf16', got 'fp16'"),
        (["train.accumulate=0"], r"train.accumulate: .*got 0"),
        (["stream=3"], r"stream: .*got 3"),
        (["checkpoint.every=-1"], r"checkpoint.every: .*got -1"),
    ],
)
def test_wrong_options_are_named_with_a_way_out(words, message):
    with pytest.raises(InputError, match=message):
        build_config(MINIMAL, parse_overrides(words))


def test_options_of_methods_and_recipes_pass_for_their_owners_to_check():
    config = build_config(MINIMAL, parse_overrides(["method.whatever=1", "train.whatever=2"]))
    assert config.method.options() == {"whatever": 1}
    assert config.train.overrides() == {"whatever": 2}


@pytest.mark.parametrize("layer", [{}, {"method": {"top_k": 3}}])
def test_a_missing_method_is_asked_for(layer):
    with pytest.raises(InputError, match=r"^method(.name)?: is required"):
        build_config(layer)


# Files


def test_files_use_the_same_short_forms(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(
        'method = "l2p"\ndata = "photos/"\nseed = 3\n[train]\nlr = 1e-3\n[stream]\ntasks = [["a"], ["b"]]\n'
    )
    config = build_config(read_toml(file))
    assert (config.method.name, config.data.path, config.seed) == ("l2p", "photos/", 3)
    assert config.train.overrides() == {"lr": 1e-3}
    assert config.stream.tasks == [["a"], ["b"]]


def test_the_command_line_wins_over_a_file(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("method = 'l2p'\n[data]\npath = 'a'\nworkers = 2\n")
    config = build_config(read_toml(file), parse_overrides(["data=b"]))
    assert (config.data.path, config.data.workers) == ("b", 2)


def test_a_broken_file_is_named_with_the_line(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("seed = 3\n[train\nlr = 1\n")
    with pytest.raises(InputError, match=r"c\.toml: is not TOML: .*line 2"):
        read_toml(file)
    file.write_bytes(b"name = '\xff'\n")
    with pytest.raises(InputError, match=r"c\.toml: is not TOML"):
        read_toml(file)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: cannot be read \(No such file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(tmp_path)


# Round trip


ROUND = [
    [],
    ["data=photos/ä b", "method.g_layers=0,1", "method.pull=0.5", "method.warm_start=false", "train.lr=1e-3"],
    ["stream.tasks=folders", "train.milestones=0.5,0.8", "train.optimizer=sgd", "backbone.weights=w.npz"],
    ['stream.tasks=[["a","b"],["c"]]', "stream.order=natural", "eval.split=validation", "preprocess=unit"],
    ["data.limit_per_class=5", "data.validation=0", "precision=bf16", "device=cuda:1", "seed=7", "eval=old/"],
]


@pytest.mark.parametrize("words", ROUND, ids=range(len(ROUND)))
def test_written_configurations_read_back_equal(tmp_path, words):
    config = build_config(MINIMAL, parse_overrides(words))
    file = tmp_path / "config.toml"
    file.write_bytes(tomli_w.dumps(config.to_dict()).encode())
    again = build_config(read_toml(file))
    assert isinstance(again, RunConfig)
    assert again == config
    assert again.to_dict() == config.to_dict()
    assert again.method.options() == config.method.options()
    assert again.train.overrides() == config.train.overrides()


def test_unset_values_are_left_out():
    written = build_config(MINIMAL).to_dict()
    assert "weights" not in written["backbone"]
    assert "tasks" not in written["stream"]
    assert written["data"]["path"] == "digits"


# Hostile input


@pytest.mark.parametrize(
    "word",
    ["data=~nosuchuser/x", "backbone=~nosuchuser/x", "backbone.weights=~nosuchuser", "eval=~nosuchuser/x",
     "cache=~nosuchuser/x", "method=~nosuchuser/m.py"],
)  # fmt: skip
def test_homes_of_nobody_are_named(word):
    with pytest.raises(InputError, match=r"home folder in '~nosuchuser"):
        absolute(build_config(MINIMAL, parse_overrides([word])))


@pytest.mark.parametrize(
    "key", ["data", "cache", "backbone", "backbone.weights", "eval", "method", "method.x", "device"]
)
@pytest.mark.parametrize("character", [0, 0xD800, 0xDCFF])
def test_texts_that_no_file_can_hold_are_refused(key, character):
    with pytest.raises(InputError, match=rf"^{key}(\.path|\.name|\.data)?: .*(NUL|UTF-8)") as error:
        absolute(build_config(MINIMAL, parse_overrides([f"{key}=a{chr(character)}b"])))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "word", [".=1", "a..b=1", ".a=1", "a.=1", " =1", "=", "train. =1", "a" + ".b" * 5000 + "=1", "a.b.c.d.e.f.g.h.i=1"]
)
def test_keys_that_name_nothing_are_refused(word):
    with pytest.raises(InputError, match=r"written key=value, got|at most 8 parts, none") as error:
        parse_overrides([word])
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text", ["[" * 5000, "[" * 5000 + "]" * 5000, "{a=" * 3000, "{" + "a." * 50000 + "b=1}", "9" * 5000]
)
def test_values_nested_without_end_are_texts_in_bounded_time(text):
    begin = time.perf_counter()
    assert parsed(text) == text
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["state_cache=inf"], r"state_cache: must be a finite number, got inf"),
        (["state_cache=nan"], r"state_cache: must be a finite number, got nan"),
        (["train.lr=nan"], r"train.lr: must be a finite number, got nan"),
        (["train.lr=1e999"], r"train.lr: must be a finite number, got inf"),
        (["train.milestones=0.5,inf"], r"train.milestones.1: must be a finite number, got inf"),
        (["method.pull=-inf"], r"method.pull: must be a finite number, got -inf"),
        (["seed=9223372036854775808"], r"seed: must be less than 2\*\*63 in size"),
        (["method.rank=0x" + "F" * 6000], r"method.rank: must be less than 2\*\*63 .*an integer of 24000 bits"),
        (["backbone.size=1000000"], r"backbone.size: .*4096"),
        (["data=" + "x" * 100_000, "seed=x"], r"seed: "),
        (["stream.order=" + "x" * 100_000], r"stream.order: .*got 'x+"),
    ],
)
def test_numbers_without_bounds_are_refused(words, message):
    with pytest.raises(InputError, match=message) as error:
        build_config(MINIMAL, parse_overrides(words))
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": ["l2p"]}, r"^method: "),
        ({"method": 5}, r"^method: "),
        ({"data": [1]}, r"^data: "),
        ({"data": {"path": [1]}}, r"^data.path: .*got \[1\]"),
        ({"data": {"path": {"a": 1}}}, r"^data.path: "),
        ({"data": {"sets": {"a": 1}}}, r"^data.sets: "),
        ({"stream": {"tasks": [["a"], 3]}}, r"^stream.tasks"),
        ({"stream": {"tasks": "x"}}, r"^stream.tasks"),
        ({"train": [1]}, r"^train: "),
        ({"train": {"accumulate": {"a": {"b": 1}}}}, r"^train.accumulate: "),
        ({5: 1}, r"^5: "),
        ({"data": {5: 1}}, r"^data.5: "),
        ({"data": {"a\nb": 1}}, r"^data.'a\\nb': unknown key"),
        ({"a" * 9999: 1}, r"^'a{50,}.*unknown key"),
        ({"data": {"path": "x", "extra": float("nan")}}, r"^data.extra: "),
        ({"method": {"name": "l2p", "x": datetime.date(2024, 1, 1)}}, r"^method.x: must be a number, .*date"),
        ({"train": {"x": [datetime.time(1)]}}, r"^train.x.0: must be a number, .*time"),
    ],
)
def test_trees_of_other_shapes_are_refused_by_name(tree, message):
    with pytest.raises(InputError, match=message) as error:
        build_config(MINIMAL, tree)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_trees_without_end_are_refused():
    tree: dict = {}
    for _ in range(5000):
        tree = {"a": tree}
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for config in (tree, {"method": {"name": "l2p", "x": deep}}, {"train": tree}, {"stream": {"tasks": deep}}):
        with pytest.raises(InputError, match="nested"):
            build_config(MINIMAL, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 5000, "nested"),
        (".".join(["a"] * 5000) + " = 1", "nested"),
        ("[" + ".".join(["a"] * 5000) + "]", "nested"),
        ("a = {" + ".".join("'a'" for _ in range(5000)) + " = 1}", "nested"),
        ("a = " + "9" * 5000, "is not TOML"),
        ("[data]\n[data]\n", "is not TOML"),
        ("seed = 1\nseed = 2\n", "is not TOML"),
        ("stream.tasks = [" + "1," * 10**4 + "]", r"stream.tasks"),
        ("'".join(["data = "] * 10**5), "is not TOML"),
        ('data = "' + '\\"' * 10**5, "is not TOML"),
        ("'a..b' = 1\n", "parts"),
        ("'' = 1\n", "parts"),
        ("# nothing\n" * 500_000, "larger than"),
        ("[[data]]\npath = 'x'\n", r"data(.path)?: "),
        ("method = ['l2p']\n", r"method.name: "),
        ("data = 2024-01-01\n", r"data.path: "),
        ("seed = 2024-01-01T00:00:00Z\n", r"seed: "),
        ("[method]\nname='l2p'\nx = 07:32:00\n", r"method.x: "),
    ],
)
def test_hostile_files_are_refused_in_bounded_time(tmp_path, text, message):
    file = tmp_path / "c.toml"
    file.write_text(text)
    begin = time.perf_counter()
    with pytest.raises(InputError, match=message) as error:
        build_config(MINIMAL, read_toml(file))
    assert time.perf_counter() - begin < 1
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 800


def test_a_byte_order_mark_is_no_part_of_a_key(tmp_path):
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert read_toml(file) == {"seed": 3}


def test_a_device_is_not_read_without_end():
    with pytest.raises(InputError, match="larger than"):
        read_toml(Path("/dev/zero"))


def test_a_file_of_no_name(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_toml(Path("a\0b"))


def test_messages_quote_little_and_nothing_that_a_terminal_obeys():
    assert quoted("a") == "'a'"
    assert quoted([1, 2.5, None]) == "[1, 2.5, None]"
    assert len(quoted("x" * 10**6)) < 500
    assert len(quoted([list(range(1000))] * 1000)) < 500
    assert quoted("\x1b[2J\n\u202e\ud800").isprintable()
    assert quoted(-(1 << 20000)) == "an integer of 20001 bits"
    assert quoted([1 << 20000]) == "a list"


# Commands that go on from a run


def test_what_a_resumed_run_may_change_is_no_result():
    assert changeable("resume") == [
        "backbone.weights", "bundle", "cache", "compile", "data.path", "data.workers", "device", "eval.data",
        "method.name", "state_cache", "train.on_divergence",
    ]  # fmt: skip


def test_a_section_that_may_change_as_a_whole_is_named_once():
    found = changeable("learn")
    assert {"data.*", "train.*", "backbone.weights"} <= set(found)
    assert not [key for key in found if key.startswith("data.") and key != "data.*"]
    assert "preprocess" not in found


@pytest.mark.parametrize(
    ("command", "word", "allowed"),
    [
        ("resume", "data=photos/", True),
        ("resume", "train.on_divergence=stop", True),
        ("resume", "train.epochs=3", False),
        ("resume", "seed=1", False),
        ("resume", "method.length=2", False),
        ("learn", "train.epochs=3", True),
        ("learn", "stream.step=1", True),
        ("learn", "method.length=2", False),
        ("learn", "backbone.size=64", False),
        ("learn", "preprocess=unit", False),
    ],
)
def test_an_option_says_which_commands_may_change_it(command, word, allowed):
    given = parse_overrides([word])
    if allowed:
        check_changes(command, given)
        return
    with pytest.raises(InputError, match=rf"{word.partition('=')[0]}: cannot change in '{command}'.*backbone.weights"):
        check_changes(command, given)


def test_runs_that_begin_in_one_second_get_directories_of_their_own(tmp_path, monkeypatch):
    class Stopped(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "datetime", Stopped)
    config = build_config({"method": {"name": "simplecil"}, "data": {"path": "photos"}})
    made = []
    for _ in range(3):
        made.append(options.directory_for(config))
        Path(made[-1]).mkdir(parents=True)
    first = made[0]
    assert first.startswith("runs/simplecil-photos-20260102-")
    assert made[1:] == [f"{first}-2", f"{first}-3"]
