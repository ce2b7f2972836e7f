"""Tables and pictures of runs."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from ostinato.errors import DataError, InputError
from ostinato.evaluation.metrics import AccuracyMatrix
from ostinato.report import (
    accuracy_curve,
    accuracy_heatmap,
    compare_curves,
    drawing,
    markdown_table,
    read_summary,
    run_table,
    summary_csv,
    tables,
    task_line,
)
from ostinato.report.console import PlainConsole

CLLORA = {
    "run": "a",
    "method": "cllora",
    "backbone": "glyphs",
    "stream": "digits",
    "tasks": 5,
    "classes": 10,
    "last_accuracy": 0.84213,
    "average_accuracy": 0.91,
    "mean_task_accuracy": 0.84,
    "forgetting": 0.0312,
    "bwt": -0.03,
    "protocol": "instance",
    "trainable_parameters": 37_632,
    "stored_bytes": 1_234_567,
    "train_seconds": 12.34,
    "eval_seconds": 210.4,
    "train_images_per_second": 100.0,
    "eval_images_per_second": None,
    "peak_memory_bytes": None,
}
SOFTTF = {**CLLORA, "run": "b", "method": "softtf", "forgetting": None, "task_id_accuracy": 0.5, "bwt": None}


def shown(*summaries: dict, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(run_table(summaries))
    return out.getvalue()


def staircase(n_tasks: int, start: int = 1, size: int = 40) -> AccuracyMatrix:
    matrix = AccuracyMatrix()
    for t in range(start, n_tasks + 1):
        matrix.add_row([max(0, size - (t - i) * 20 // n_tasks - i % 3) for i in range(t)], [size] * t)
    return matrix


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("L"))
        assert (pixels < 128).sum() > 500, "nothing was drawn"
        # A margin all around: nothing is cut off.
        assert min(edge.min() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])) == 255
        return image.size


def test_the_table_is_percent_and_human():
    lines = shown(CLLORA).splitlines()
    assert lines[-1].split() == [
        *("cllora", "digits", "5", "10", "84.2", "91.0", "3.1", "instance"),
        *("0.04", "M", "1.2", "MB", "12.3", "210"),
    ]
    assert "task" not in shown(CLLORA).replace("tasks", "")
    assert "run" not in lines[1]


def test_the_table_shows_optional_columns_when_a_run_has_them():
    text = shown(CLLORA, SOFTTF)
    assert "id %" in text
    first, second = text.splitlines()[-2:]
    assert first.split()[:8] == ["a", "cllora", "digits", "5", "10", "84.2", "91.0", "3.1"]
    assert second.split()[5:9] == ["84.2", "91.0", "-", "50.0"]


def test_a_narrow_table_says_what_it_leaves_out():
    for width in (40, 60, 80):
        text = shown(CLLORA, SOFTTF, width=width)
        assert "eval s" in text.split("Left out to fit")[1].replace("\n", " ")
        assert "84.2" in text
        assert max(map(len, text.splitlines())) <= width
    assert "Left out" not in shown(CLLORA, SOFTTF, width=120)


def printed(**options) -> str:
    out = io.StringIO()
    console = PlainConsole(file=out, **options)
    console.print("word " * 100)
    console.print(run_table([CLLORA, {**SOFTTF, "run": "a-name-of-a-run-" * 10}]))
    return out.getvalue()


def test_without_a_terminal_nothing_is_wrapped_or_left_out(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed().splitlines()
    assert lines[0].split() == ["word"] * 100
    assert "Left out" not in "".join(lines)
    assert len(lines) == 5  # two of headings, two of runs
    assert "a-name-of-a-run-" * 10 in lines[-1]
    assert max(map(len, lines)) < 600


def test_a_chosen_width_and_that_of_a_terminal_are_kept(monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    assert "Left out to fit 50 characters" in printed()
    assert max(map(len, printed().splitlines())) <= 50
    assert "Left out to fit 60 characters" in printed(width=60)
    monkeypatch.delenv("COLUMNS")
    # A terminal whose size is unknown has 80 columns.
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (_ for _ in ()).throw(OSError()))
    assert "Left out to fit 80 characters" in printed(force_terminal=True, color_system=None)


def test_the_table_takes_empty_and_marked_up_values():
    text = shown({"method": "[red]x", "last_accuracy": float("nan")})
    assert text.splitlines()[-1].split() == ["[red]x", *"-" * 11]
    assert shown()


def test_the_markdown_table():
    lines = markdown_table([{**CLLORA, "method": "a|b"}, {"method": "x"}]).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("| run | method | stream | tasks |")
    assert lines[1].startswith("| --- | --- | --- | ---: | ---: |")
    assert "| a\\|b |" in lines[2]
    assert " 84.2 |" in lines[2]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert len(markdown_table([]).splitlines()) == 2


def test_cells_of_markdown_are_escaped():
    text = tables.to_markdown(["a", "b", "c\nd"], [["x|y", "\\", "1\n2"]], texts=(0, 2))
    assert text == "| a | b | c d |\n| --- | ---: | --- |\n| x\\|y | \\\\ | 1 2 |\n"
    with pytest.raises(ValueError, match="zip"):
        tables.to_markdown(["a", "b"], [["x"]])


def test_the_csv_holds_fractions(tmp_path: Path):
    path = tmp_path / "s.csv"
    summary_csv([CLLORA, {**SOFTTF, "seed": 3}], path)
    with path.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["run", *tables.SUMMARY_KEYS, "seed"]
    assert first["last_accuracy"] == "0.842130"
    assert first["train_seconds"] == "12.34"
    assert first["eval_images_per_second"] == ""
    assert (first["seed"], second["seed"]) == ("", "3")
    assert (first["task_id_accuracy"], second["task_id_accuracy"]) == ("", "0.500000")
    summary_csv([], path)
    assert path.read_text() == ",".join(tables.SUMMARY_KEYS) + "\n"


def test_the_line_after_a_task():
    row = {
        "task": 2,
        "tasks": 10,
        "classes": 30,
        "accuracy": 0.842,
        "forgetting": 0.031,
        "train_seconds": 12.3,
    }
    assert task_line(row) == "task 3 of 10 | 30 classes | accuracy 84.2% | forgetting 3.1% | train 12.3 s"
    assert task_line({"task": 0, "tasks": None, "accuracy": 1.0, "forgetting": None}) == "task 1 | accuracy 100.0%"


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (tables.human_count, 0, "0"),
        (tables.human_count, 999, "999"),
        (tables.human_count, 1_200, "1.2 k"),
        (tables.human_count, 37_632, "0.04 M"),
        (tables.human_count, 85_798_656, "85.8 M"),
        (tables.human_count, 304_000_000, "304 M"),
        (tables.human_count, None, "-"),
        (tables.human_bytes, 0, "0 B"),
        (tables.human_bytes, 1_500, "1.5 kB"),
        (tables.human_bytes, 9_960, "10 kB"),
        (tables.human_bytes, 999_600, "1.0 MB"),
        (tables.human_bytes, 77_000_000, "77 MB"),
        (tables.human_bytes, 3_200_000_000, "3.2 GB"),
        (tables.human_bytes, 5e12, "5.0 TB"),
        (tables.human_bytes, None, "-"),
        (tables.percent, 0.8125, "81.2"),
        (tables.percent, None, "-"),
        (tables.seconds, 99.94, "99.9"),
        (tables.seconds, 99.96, "100"),
        (tables.seconds, None, "-"),
    ],
)
def test_numbers_for_people(show, value, text):
    assert show(value) == text


def test_a_summary_is_read(tmp_path: Path):
    run = tmp_path / "first"
    run.mkdir()
    content = {k: v for k, v in CLLORA.items() if k != "run"}
    (run / "summary.json").write_text(json.dumps(content))
    assert read_summary(run) == {"run": "first", **content}
    (run / "summary.json").write_text(json.dumps(CLLORA))
    assert read_summary(run)["run"] == "a"


def test_what_is_no_finished_run_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="there is none at"):
        read_summary(tmp_path / "none")
    with pytest.raises(DataError, match=r"but .* has neither"):
        read_summary(tmp_path)
    (tmp_path / "config.toml").touch()
    with pytest.raises(DataError, match="must be finished") as caught:
        read_summary(tmp_path)
    assert f"ostinato resume {tmp_path}" in str(caught.value)
    for text, message in (
        ("{", "must be JSON"),
        ("[]", "must hold a JSON object, not list"),
        ('{"method": "x"}', "last_accuracy: Field required"),
    ):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(DataError, match=message):
            read_summary(tmp_path)


@pytest.mark.parametrize(("n_tasks", "start"), [(1, 1), (5, 1), (20, 1), (50, 1), (6, 6), (9, 6)])
def test_pictures_of_a_run(tmp_path: Path, n_tasks: int, start: int):
    matrix = staircase(n_tasks, start)
    accuracy_curve(matrix, tmp_path / "new" / "curve.png", "a run", [0.9] * (matrix.n_rows - 1) + [None])
    assert size_of(tmp_path / "new" / "curve.png") == (1200, 720)
    accuracy_heatmap(matrix, tmp_path / "heat.png", "a run")
    width, height = size_of(tmp_path / "heat.png")
    assert width == 1200
    assert 300 < height < 1300


def test_pictures_take_any_name_and_missing_test_samples(tmp_path: Path):
    matrix = AccuracyMatrix([[0], [0, 8], [0, 6, 5]], [0, 10, 10])
    names = ["$x_{", "漢字\nname", "a name that is far too long to be drawn in full " * 3]
    accuracy_heatmap(matrix, tmp_path / "h.png", "costs $5 or $6 " * 20, names)
    accuracy_curve(matrix, tmp_path / "c.png", "", [None, None, None])
    compare_curves({name: matrix for name in names}, tmp_path / "m.png", "漢字")
    accuracy_curve(AccuracyMatrix([[0]], [0]), tmp_path / "n.png", "nothing to test")
    for name in "hcmn":
        size_of(tmp_path / f"{name}.png")


def test_a_picture_of_several_runs(tmp_path: Path):
    path = tmp_path / "m.png"
    compare_curves({"a": staircase(10), "b": staircase(4), "c": staircase(12, 8)}, path, "runs")
    assert size_of(path) == (1200, 720)
    compare_curves({f"run {i}": staircase(6) for i in range(30)}, path, "runs")
    assert size_of(path)[1] > 720


def test_the_same_run_makes_the_same_picture(tmp_path: Path):
    for name in ("a.png", "b.png"):
        accuracy_heatmap(staircase(3), tmp_path / name, "same")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF-"), ("a.svg", b"<?xml"), ("a.b.svg", b"<?xml")]
)
def test_the_suffix_decides_the_format(tmp_path: Path, name: str, begins: bytes):
    contents = []
    for folder in ("one", "two"):
        compare_curves({"a": staircase(3), "b": staircase(2)}, tmp_path / folder / name, "runs")
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0].startswith(begins)
    assert (b"<svg" in contents[0]) == name.endswith("svg")
    assert contents[0] == contents[1]


@pytest.mark.parametrize("name", ["a.jpg", "a", "png", "a.pdf.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str):
    path = tmp_path / "new" / name
    matrix, known = staircase(2), r"must end in \.png, \.pdf, \.svg, got '.*" + name
    with pytest.raises(InputError, match=known):
        compare_curves({"a": matrix}, path, "runs")
    for draw in (accuracy_curve, accuracy_heatmap):
        with pytest.raises(InputError, match=known):
            draw(matrix, path, "run")
    assert not path.parent.exists()


def test_long_names_of_many_runs_lie_within_the_picture(tmp_path: Path):
    names = [f"{'W' * 40} {i}" for i in range(25)]
    compare_curves({name: staircase(6) for name in names}, tmp_path / "m.png", "runs")
    assert size_of(tmp_path / "m.png")[0] == 1200


def test_pictures_refuse_what_does_not_fit(tmp_path: Path):
    path = tmp_path / "x.png"
    with pytest.raises(InputError, match=r"task_labels must have an entry per task \(3\), got 1"):
        accuracy_heatmap(staircase(3), path, "", ["a"])
    with pytest.raises(InputError, match=r"entry per row of the matrix \(3\), got 2"):
        accuracy_curve(staircase(3), path, "", [0.1, 0.2])
    for draw in (accuracy_curve, accuracy_heatmap):
        with pytest.raises(InputError, match=f"{draw.__name__}: .* at least one row"):
            draw(AccuracyMatrix(), path, "")
    with pytest.raises(InputError, match=r"run 'b': .* at least one row"):
        compare_curves({"a": staircase(2), "b": AccuracyMatrix()}, path, "")
    with pytest.raises(InputError, match="at least one run"):
        compare_curves({}, path, "")
    assert not path.exists()


@given(st.lists(st.floats(-20, 620), max_size=40))
def test_labels_never_overlap_and_keep_their_order(wanted: list[float]):
    places = drawing.spread(wanted, 24.0, 0.0, 600.0)
    gap = 24.0 if len(wanted) <= 26 else 600 / (len(wanted) - 1)
    ranked = sorted(places)
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ranked))
    assert all(-1e-6 <= v <= 600 + 1e-6 for v in places)
    pairs = sorted(zip(wanted, places, strict=True))
    assert [p for w, p in pairs if wanted.count(w) == 1] == sorted(p for w, p in pairs if wanted.count(w) == 1)


def test_labels_that_fit_stay_where_they_are():
    assert drawing.spread([100.0, 10.0, 300.0], 24.0, 0.0, 600.0) == [100.0, 10.0, 300.0]
    assert drawing.spread([100.0, 100.0], 24.0, 0.0, 600.0) == [112.0, 88.0]


def test_numbers_are_legible_on_every_fill():
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    def luminance(colour) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(colour)]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for share in np.linspace(0, 1, 101):
        fill = colormaps["viridis"](share)
        a, b = sorted((luminance(fill[:3]), luminance(drawing.ink_on(fill))))
        assert (b + 0.05) / (a + 0.05) > 3.9


@pytest.mark.parametrize(("low", "high"), [(1, 1), (1, 2), (1, 50), (37, 120), (1, 1000)])
def test_ticks_are_few_and_hold_both_ends(low: int, high: int):
    ticks = drawing.tick_counts(low, high)
    assert ticks[0] == low
    assert ticks[-1] == high
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 22


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, ostinato.report; sys.exit(any(m in sys.modules for m in ('matplotlib', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
