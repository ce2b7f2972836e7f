"""Confusion between classes, and the files that show it: counted by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import BLUE, RED

from ostinato.errors import InputError
from ostinato.evaluation.confusion import ClassResult, Confusion, Pair, similarity_order, wrongest
from ostinato.evaluation.evaluator import Evaluation
from ostinato.report import explained
from ostinato.report.explained import draw_confusion, draw_sheet, report_folder, write_report, wrong_answers
from ostinato.report.tables import class_lines, confused_lines

NAMES = ["ash", "birch", "cedar", "fir"]
LABELS = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
ANSWERS = [0, 1, 1, 3, 1, 0, 2, 2, 0]
PROBABILITIES = [0.9, 0.6, 0.8, 0.7, 0.5, 0.95, 0.9, 0.4, 0.3]


def evaluation(answers: list[int] = ANSWERS, right: list[bool] | None = None, **more: Any) -> Evaluation:
    n = len(answers)
    right = (answers == LABELS).tolist() if right is None else right
    fields = {"probabilities": PROBABILITIES, "bins": [[[1, 0.5, 1]] + [[0, 0, 0]] * 13 + [[4, 3.8, 3]]]} | more
    return Evaluation([n], [sum(right)], [0], None, None, [], [], n, 1.0, answers, right, **fields)


CONFUSION = Confusion.of(LABELS, evaluation(), NAMES)


def test_answers_are_counted_by_class():
    assert CONFUSION.counts.tolist() == [[1, 2, 0, 1], [1, 1, 0, 0], [1, 0, 2, 0], [0, 0, 0, 0]]
    classes = CONFUSION.classes()
    assert classes[0] == ClassResult("ash", samples=4, answered=3, right=1)
    assert (classes[0].recall, classes[0].precision) == (1 / 4, 1 / 3)
    assert (classes[2].recall, classes[2].precision) == (2 / 3, 1)
    assert (classes[3].recall, classes[3].precision) == (None, 0), "answered, but without samples"
    absent = Confusion.of(LABELS, evaluation(), [*NAMES, "yew"])
    assert [one.name for one in absent.classes()] == NAMES, "a class without samples and answers has no line"


def test_pairs_come_by_the_samples_then_by_the_share():
    assert CONFUSION.pairs() == [
        Pair("ash", "birch", 2, 4), Pair("birch", "ash", 1, 2), Pair("cedar", "ash", 1, 3), Pair("ash", "fir", 1, 4),
    ]  # fmt: skip


def test_an_answer_of_the_same_group_is_right_and_no_confusion():
    right = [True, False, False, True, True, False, True, True, False]
    counts = Confusion.of(LABELS, evaluation(right=right), NAMES).counts
    assert counts[0].tolist() == [2, 2, 0, 0]


def test_similar_classes_become_neighbours_with_their_similar_ends_together():
    """First 0 and 2, then 1 and 3; of the four ends, those of 2 and 3 are alike."""
    similarity = np.zeros((4, 4))
    for i, j, value in ((0, 2, 0.5), (1, 3, 0.4), (2, 3, 0.1)):
        similarity[i, j] = similarity[j, i] = value
    assert similarity_order(similarity) == [0, 2, 3, 1]
    assert similarity_order(np.zeros((3, 3))) == [0, 1, 2]
    assert similarity_order(np.zeros((1, 1))) == [0]


def test_clusters_are_joined_by_the_mean_over_their_members():
    """After 0 and 1: 2 is like 0 (0.6), 3 like 1 (0.5), less than 0.35 in the mean; so 2 and 3 (0.35) are next."""
    similarity = np.zeros((4, 4))
    for i, j, value in ((0, 1, 0.9), (0, 2, 0.6), (2, 3, 0.35), (1, 3, 0.5)):
        similarity[i, j] = similarity[j, i] = value
    assert similarity_order(similarity) == [1, 0, 2, 3]


def test_the_similarity_is_the_mean_share_of_both_directions():
    similarity = CONFUSION.similarity()
    assert similarity[0, 1] == similarity[1, 0] == (2 / 4 + 1 / 2) / 2
    assert similarity[0, 2] == (0 + 1 / 3) / 2
    assert (np.diag(similarity) == 0).all()


def test_the_most_probable_wrong_answers_come_first():
    assert wrongest(evaluation()) == [5, 2, 3, 1, 8]


def test_lines_for_the_terminal():
    lines = class_lines(CONFUSION, "image")
    assert [line.split()[-1] for line in lines] == ["class", "ash", "birch", "cedar", "fir"]
    assert lines[1].split() == ["25.0%", "33.3%", "4", "ash"]
    assert lines[-1].split() == ["-", "0.0%", "0", "fir"]
    assert confused_lines(CONFUSION, 1) == ["Most confused (1 of 4 pairs):", "  2 of 4  'ash' answered as 'birch'"]
    right = Confusion.of(LABELS, evaluation(LABELS.tolist()), NAMES)
    assert confused_lines(right, 3) == []


# Files


class Samples:
    """Labelled samples in memory, with the parts of a data set that a report reads."""

    def __init__(self, values: list[Any], labels: np.ndarray = LABELS, places: list[int] | None = None) -> None:
        self.values, self.labels = values, torch.from_numpy(labels)
        self.places = list(range(len(values))) if places is None else places
        self.modality = "text" if isinstance(values[0], str) else "image"

    def __len__(self) -> int:
        return len(self.values)

    def subset(self, rows: list[int]) -> Samples:
        return Samples([self.values[i] for i in rows] or self.values[:1], self.labels[rows].numpy(), rows)

    def names(self) -> list[str]:
        return [f"sample {i}" for i in self.places]

    def raw(self, i: int) -> Any:
        return self.values[i]


def images(colour: tuple[int, int, int] = RED) -> Samples:
    return Samples([Image.new("RGB", (40 + i, 30), colour) for i in range(len(LABELS))])


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_report_of_texts_lists_every_wrong_text(tmp_path):
    texts: Any = Samples([f"text, number {i}" for i in range(len(LABELS))])
    files = write_report(tmp_path / "new", texts, evaluation(), CONFUSION, {"accuracy": 4 / 9})
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == files
    assert "wrongest.png" not in files
    wrong = rows(tmp_path / "new/wrong.csv")
    assert wrong[0] == ["sample", "true", "predicted", "probability", "text"]
    assert wrong[1] == ["sample 5", "birch", "ash", "0.950000", "text, number 5"]
    assert [row[0][-1] for row in wrong[1:]] == ["5", "2", "3", "1", "8"]
    assert rows(tmp_path / "new/classes.csv")[1] == ["ash", "4", "3", "1", "0.250000", "0.333333"]
    assert rows(tmp_path / "new/classes.csv")[4] == ["fir", "0", "1", "0", "", "0.000000"]
    assert rows(tmp_path / "new/confused.csv")[1] == ["ash", "birch", "2", "4"]
    assert rows(tmp_path / "new/confusion.csv")[:2] == [["true", *NAMES], ["ash", "1", "2", "0", "1"]]
    bins = rows(tmp_path / "new/calibration.csv")
    assert bins[1] == ["softmax", "0.000000", "0.066667", "1", "0.500000", "1.000000"]
    assert bins[2][3:] == ["0", "", ""]
    assert bins[15] == ["softmax", "0.933333", "1.000000", "4", "0.950000", "0.750000"]
    assert json.loads((tmp_path / "new/report.json").read_text()) == {"accuracy": 4 / 9}


def test_a_report_replaces_an_earlier_one_and_nothing_else(tmp_path):
    write_report(report_folder(tmp_path), images(), evaluation(), CONFUSION, {})  # pyright: ignore
    assert (tmp_path / "wrongest.png").exists()
    right = evaluation(LABELS.tolist())
    files = write_report(report_folder(tmp_path), images(), right, Confusion.of(LABELS, right, NAMES), {})  # pyright: ignore
    assert "wrongest.png" not in files
    assert not (tmp_path / "wrongest.png").exists(), "nothing of the earlier report stays"
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="must be a new folder or one of an earlier report"):
        report_folder(tmp_path)


def test_the_sheet_shows_the_wrongest_images(tmp_path):
    result, samples = evaluation(), images()
    for i in (5, 2):
        samples.values[i] = Image.new("RGB", (60, 30), BLUE)
    wrong = wrong_answers(samples, result, NAMES)[:2]  # pyright: ignore
    assert [(one.true, one.predicted, one.probability) for one in wrong] == [
        ("birch", "ash", 0.95),
        ("ash", "birch", 0.8),
    ]
    draw_sheet(wrong, samples, result, tmp_path / "sheet.png")  # pyright: ignore
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3)
    assert (pixels == BLUE).all(1).sum() > 10_000
    assert not (pixels == RED).all(1).any()


@pytest.fixture
def panels(monkeypatch) -> list[Any]:
    """Panels of the figures that are drawn."""
    found: list[Any] = []
    monkeypatch.setattr(
        explained, "heat_maps", lambda panels, path, title, subtitle, **_: found.append((panels[0], subtitle))
    )
    return found


def test_the_figure_has_shares_and_no_cell_without_answers(panels, tmp_path):
    draw_confusion(CONFUSION, tmp_path / "x.png")
    panel, _ = panels[0]
    order = [NAMES.index(name) for name in panel.across]
    assert panel.down == panel.across
    assert abs(order.index(0) - order.index(1)) == 1, "ash and birch are confused most"
    ash, birch, cedar, fir = (order.index(i) for i in range(4))
    assert panel.values[ash, birch] == 50
    assert panel.values[cedar, cedar] == pytest.approx(200 / 3)
    assert np.ma.getmaskarray(panel.values)[[cedar, fir, fir], [birch, fir, ash]].all()


def test_of_many_classes_those_with_the_most_wrong_answers_are_drawn(panels, tmp_path):
    n = explained.MOST_DRAWN + 6
    counts = 5 * np.eye(n, dtype=np.int64)
    for i in range(0, n - 6, 2):
        counts[i, i + 1] = 2
    draw_confusion(Confusion([f"class {i}" for i in range(n)], counts), tmp_path / "x.png")
    panel, subtitle = panels[0]
    assert panel.across == [f"class {i}" for i in range(n - 6)]
    assert f"classes of {n}" in subtitle
