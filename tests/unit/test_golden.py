"""The record of what every method computes: equal where nothing changed, else the first change is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from ostinato.lookup import methods
from ostinato.registry import check_options, options_schema, parts_of, sources_of_options
from scripts import golden

CHEAP = "^(dualprompt on CLIP|simplecil on texts)$"
STEP = "losses, task 2, fit, step 3, ce"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Two cheap rows."""
    path = tmp_path_factory.mktemp("golden") / "rows.json"
    assert golden.main(["record", str(path), "--only", CHEAP]) == 0
    return path


def changed(path: Path, to: Path, change) -> list[str]:
    """The arguments of a check against what was recorded, after a change of it."""
    content = json.loads(path.read_text())
    change(content)
    to.write_text(json.dumps(content))
    return ["check", str(to), "--only", CHEAP]


def results(content: dict[str, Any]) -> dict[str, Any]:
    return content["rows"]["dualprompt on CLIP"]["results"]


def test_what_is_computed_again_is_equal(recorded, capsys):
    assert golden.main(["check", str(recorded), "--only", CHEAP]) == 0
    said = capsys.readouterr().out
    assert "dualprompt on CLIP: equal" in said
    assert "simplecil on texts: equal" in said


def test_the_last_bit_of_a_loss_is_reported_with_its_step(recorded, tmp_path, capsys):
    def change(content):
        losses = results(content)["losses"]["task 2, fit, step 3"]
        losses["ce"] *= 1 + 2**-52

    assert golden.main(changed(recorded, tmp_path / "rows.json", change)) == 1
    said = capsys.readouterr().out
    assert "dualprompt on CLIP: 1 of" in said
    assert f"first {STEP}: was" in said
    assert "simplecil on texts: equal" in said


def test_a_change_of_what_is_computed_is_reported(recorded, monkeypatch, capsys):
    """An option of the row, which takes effect from the second task on."""
    rows = [replace(row, options=row.options | {"warm_start": False}) for row in golden.ROWS]
    monkeypatch.setattr(golden, "ROWS", [row for row in rows if row.name == "dualprompt on CLIP"])
    assert golden.main(["check", str(recorded), "--only", "dualprompt on CLIP"]) == 1
    assert "first losses, task 2, fit, step 1, ce: was" in capsys.readouterr().out


def test_a_score_is_reported_with_its_sample(recorded, tmp_path, capsys):
    def change(content):
        results(content)["scores"]["sample 7"][2] += 0.5

    assert golden.main(changed(recorded, tmp_path / "rows.json", change)) == 1
    said = capsys.readouterr().out
    assert "the largest gap between numbers is 0.5; first scores, sample 7, [2]: was" in said


def test_rows_on_one_side_alone_are_reported(recorded, tmp_path, capsys):
    def change(content):
        content["rows"] = {"simplecil on texts, old": content["rows"]["simplecil on texts"]}

    arguments = changed(recorded, tmp_path / "rows.json", change)
    assert golden.main([*arguments[:-1], "simplecil on texts"]) == 1
    said = capsys.readouterr().out
    assert "simplecil on texts: not recorded" in said
    assert "simplecil on texts, old: recorded, but no row is called so now" in said


def test_another_machine_is_refused(recorded, tmp_path, capsys):
    def change(content):
        content["machine"]["torch"] = "1.0"

    assert golden.main(changed(recorded, tmp_path / "rows.json", change)) == 2
    assert "bits may differ" in capsys.readouterr().err


def test_nothing_is_recorded_where_a_row_ends_with_an_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(golden, "ROWS", [golden.Row("wrong", "simplecil", {"no_such": 1}, on="image")])
    assert golden.main(["record", str(tmp_path / "rows.json")]) == 1
    assert not (tmp_path / "rows.json").exists()
    assert "no_such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (0.0, -0.0),
        (1.0, 1.0 + 2**-52),
        (1, 1.0),
        (True, 1),
        (None, 0),
        ([1.0], [1.0, 1.0]),
        ({"a": 1.0, "b": 1.0}, {"a": 1.0}),
        ({"a": 1.0}, {"a": 1.0, "b": 1.0}),
    ],
)
def test_values_differ(before, now):
    assert golden.verdict({"x": before}, {"x": now}) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, 0.1, 3, None, "a", [1.0, [2.0]], {"a": []}])
def test_values_are_equal_after_a_file(value):
    assert golden.verdict({"x": value}, json.loads(json.dumps({"x": value}))) is None


def test_every_method_has_rows_of_one_name_each_and_options_that_exist():
    assert {row.method for row in golden.ROWS} == set(methods())
    assert len({row.name for row in golden.ROWS}) == len(golden.ROWS)
    for row in golden.ROWS:
        check_options(methods()[row.method], row.options)


def choices(kind):
    """Values that an option of this kind can take, where they are few."""
    return (True, False) if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()


def own_options(source):
    """Options of a method's constructor, or of a part."""
    return getattr(source, "model_fields", None) or source.__init__.__kwdefaults__ or {}


def test_every_choice_of_an_option_is_in_a_row():
    """Options that several methods share count together, and so do the options of a part."""
    wanted, seen = set(), set()
    for name, cls in methods().items():
        fields, parts = options_schema(cls).model_fields, parts_of(cls)
        used = [check_options(cls, row.options) for row in golden.ROWS if row.method == name]
        for option, about in fields.items():
            owner = next(c for c in sources_of_options(cls) if option in own_options(c))
            if option not in parts:
                wanted |= {(owner.__name__, option, choice) for choice in choices(about.annotation)}
                seen |= {(owner.__name__, option, values[option]) for values in used}
                continue
            for part in parts[option]:
                kinds = type(part).model_fields
                wanted |= {(owner.__name__, option, part.name)}
                wanted |= {(type(part).__name__, key, c) for key in part.own() for c in choices(kinds[key].annotation)}
                chosen = [values[option] for values in used if values[option]["name"] == part.name]
                seen |= {(owner.__name__, option, part.name) for _ in chosen}
                seen |= {(type(part).__name__, key, values[key]) for values in chosen for key in part.own()}
    assert not wanted - seen
