"""Accuracy matrix and summary: hand-worked numbers, properties, round trips, messages."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.errors import DataError, InputError
from ostinato.evaluation.metrics import AccuracyMatrix, summary


def worked() -> AccuracyMatrix:
    """The example of docs/metrics.md."""
    return AccuracyMatrix([[9], [8, 18], [6, 19, 5]], [10, 20, 10])


@st.composite
def matrices(draw: st.DrawFn, least: int = 0, first: int = 4, more: int = 5) -> AccuracyMatrix:
    start = draw(st.integers(1, first))
    n_tasks = start + draw(st.integers(0, more))
    totals = draw(st.lists(st.integers(least, 30), min_size=n_tasks, max_size=n_tasks))
    rows = [[draw(st.integers(0, n)) for n in totals[:t]] for t in range(start, n_tasks + 1)]
    return AccuracyMatrix(rows, totals)


def test_the_worked_example_of_the_documentation():
    matrix = worked()
    nan = math.nan
    np.testing.assert_array_equal(matrix.values(), [[0.9, nan, nan], [0.8, 0.9, nan], [0.6, 0.95, 0.5]], strict=False)
    assert [matrix.row_accuracy(t) for t in range(3)] == [9 / 10, 26 / 30, 30 / 40]
    got = summary(matrix)
    assert got == pytest.approx(
        {
            "last_accuracy": 0.75,
            "average_accuracy": (0.9 + 26 / 30 + 0.75) / 3,
            "mean_task_accuracy": (0.6 + 0.95 + 0.5) / 3,
            "forgetting": (0.3 + 0.0) / 2,
            "bwt": (-0.3 + 0.05) / 2,
        }
    )


def test_forgetting_counts_from_the_best_row_and_only_old_tasks():
    # As in L2P: rows are stages, columns tasks.
    assert summary(AccuracyMatrix([[90], [80, 95]], [100, 100]))["forgetting"] == pytest.approx(0.10)
    # The best of task 0 is in the middle: 0.9 after task 1.
    matrix = AccuracyMatrix([[5], [9, 1], [6, 1, 10]], [10, 10, 10])
    assert summary(matrix)["forgetting"] == pytest.approx((0.3 + 0.0) / 2)
    assert summary(matrix)["bwt"] == pytest.approx((0.1 + 0.0) / 2)


def test_one_task_has_no_forgetting():
    assert summary(AccuracyMatrix([[7]], [8])) == {
        "last_accuracy": 0.875,
        "average_accuracy": 0.875,
        "mean_task_accuracy": 0.875,
        "forgetting": None,
        "bwt": None,
    }


def test_a_continued_run_starts_with_several_tasks():
    matrix = AccuracyMatrix()
    matrix.add_row([9, 8, 10], [10, 10, 10])
    assert summary(matrix)["forgetting"] is None
    matrix.add_row([7, 9, 10, 6], [10, 10, 10, 10])
    matrix.add_row([7, 8, 9, 5, 10], [10, 10, 10, 10, 10])
    assert [matrix.first_row(i) for i in range(5)] == [0, 0, 0, 1, 2]
    assert (matrix.n_rows, matrix.n_tasks, matrix.values().shape) == (3, 5, (3, 5))
    got = summary(matrix)
    assert got["forgetting"] == pytest.approx((0.2 + 0.1 + 0.1 + 0.1) / 4)
    assert got["bwt"] == pytest.approx((-0.2 + 0.0 - 0.1 - 0.1) / 4)
    assert got["average_accuracy"] == pytest.approx((27 / 30 + 32 / 40 + 39 / 50) / 3)


def test_tasks_without_test_samples_are_left_out():
    matrix = AccuracyMatrix([[0], [0, 8], [0, 6, 5]], [0, 10, 10])
    assert np.isnan(matrix.values()[:, 0]).all()
    assert math.isnan(matrix.row_accuracy(0))
    got = summary(matrix)
    assert got["average_accuracy"] == pytest.approx((0.8 + 0.55) / 2)
    assert got["mean_task_accuracy"] == pytest.approx(0.55)
    assert got["forgetting"] == pytest.approx(0.2)
    assert set(summary(AccuracyMatrix([[0]], [0])).values()) == {None}


@given(matrices())
def test_what_always_holds(matrix: AccuracyMatrix):
    got = summary(matrix)
    for key in ("last_accuracy", "average_accuracy", "mean_task_accuracy", "forgetting"):
        value = got[key]
        assert value is None or 0 <= value <= 1
    assert (got["forgetting"] is None) == (got["bwt"] is None)
    if got["forgetting"] is not None and got["bwt"] is not None:
        assert -1 <= got["bwt"] <= 1
        assert got["forgetting"] >= -got["bwt"]
    covered = [len(row) for row in matrix.correct]
    values = matrix.values()
    for r, width in enumerate(covered):
        np.testing.assert_array_equal(np.isnan(values[r, :width]), np.equal(matrix.totals[:width], 0))
        assert np.isnan(values[r, width:]).all()


@given(matrices(least=1))
def test_a_perfect_matrix(matrix: AccuracyMatrix):
    perfect = AccuracyMatrix([matrix.totals[: len(row)] for row in matrix.correct], matrix.totals)
    nothing = None if perfect.n_rows == 1 else 0.0
    assert summary(perfect) == {
        "last_accuracy": 1.0,
        "average_accuracy": 1.0,
        "mean_task_accuracy": 1.0,
        "forgetting": nothing,
        "bwt": nothing,
    }


@given(matrices(more=0, first=6), st.randoms(use_true_random=False))
def test_tasks_of_one_session_have_no_order(matrix: AccuracyMatrix, random):
    matrix.add_row([0] * (matrix.n_tasks + 1), [*matrix.totals, 3])
    order = list(range(matrix.n_tasks - 1))
    random.shuffle(order)
    shuffled = AccuracyMatrix(
        [[matrix.correct[0][i] for i in order], [*(matrix.correct[1][i] for i in order), 0]],
        [*(matrix.totals[i] for i in order), 3],
    )
    assert summary(shuffled) == pytest.approx(summary(matrix))


@given(matrices(least=1), st.integers(2, 9))
def test_equal_tasks_make_both_last_accuracies_equal_and_scale_does_not_matter(matrix: AccuracyMatrix, times):
    scaled = AccuracyMatrix([[times * v for v in row] for row in matrix.correct], [times * n for n in matrix.totals])
    assert summary(scaled) == pytest.approx(summary(matrix))
    equal = AccuracyMatrix([[min(v, 5) for v in row] for row in matrix.correct], [5] * matrix.n_tasks)
    got = summary(equal)
    assert got["last_accuracy"] == pytest.approx(got["mean_task_accuracy"])


@given(matrices())
def test_state_survives_json(matrix: AccuracyMatrix):
    state = matrix.to_dict()
    assert AccuracyMatrix.from_dict(json.loads(json.dumps(state))) == matrix
    state["correct"].append("changed")
    assert matrix.to_dict() != state


@given(matrices())
@settings(max_examples=30)
def test_csv_gives_the_counts_back(tmp_path_factory, matrix: AccuracyMatrix):
    path = tmp_path_factory.getbasetemp() / "matrix.csv"
    matrix.to_csv(path)
    assert AccuracyMatrix.from_csv(path) == matrix


def test_csv_gives_large_counts_back(tmp_path: Path):
    matrix = AccuracyMatrix([[123_457, 999_998, 1]], [999_999, 999_999, 3])
    matrix.to_csv(tmp_path / "m.csv")
    assert AccuracyMatrix.from_csv(tmp_path / "m.csv") == matrix


def test_csv_is_for_people(tmp_path: Path):
    worked().to_csv(tmp_path / "m.csv")
    assert (tmp_path / "m.csv").read_text().splitlines() == [
        "after_task,task_0,task_1,task_2,all",
        "0,0.900000,,,0.900000",
        "1,0.800000,0.900000,,0.866667",
        "2,0.600000,0.950000,0.500000,0.750000",
        "test_samples,10,20,10,40",
    ]
    AccuracyMatrix([[0, 4]], [0, 8]).to_csv(tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        assert list(csv.reader(file))[1] == ["1", "", "0.500000", "0.500000"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must start with the line"),
        ("a,b\n1,2\n", "must start with the line"),
        ("after_task,task_0,all\n0,0.5,0.5\n", "test_samples"),
        ("after_task,task_0,all\n0,0.5,0.5\ntest_samples,3,3\n", "0.5 is no count out of 3"),
        ("after_task,task_0,all\n0,50,50\ntest_samples,2,2\n", r"in \[0, 1\], got '50'"),
        ("after_task,task_0,all\n0,nan,\ntest_samples,2,2\n", "got 'nan'"),
        ("after_task,task_0,all\n4,0.5,0.5\ntest_samples,2,2\n", "no accuracy matrix"),
        ("after_task,task_0,all\nx,0.5,0.5\ntest_samples,2,2\n", "no accuracy matrix"),
    ],
)
def test_csv_of_another_kind_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        AccuracyMatrix.from_csv(path)
    assert str(path) in str(caught.value)


def test_a_missing_csv_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        AccuracyMatrix.from_csv(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("correct", "totals", "message"),
    [
        ([8, 18, 5], [10, 20, 10], r"row 1 must be one longer .* \(2 entries\), got 3"),
        ([8], [10], r"must be one longer .* got 1"),
        ([8, 18], [10], "totals must have 2 entries, as correct has, got 1"),
        ([8, 21], [10, 20], r"row 1, task 1: correct must be in \[0, total\], got 21 of 20"),
        ([-1, 20], [10, 20], "task 0: .* got -1 of 10"),
        ([8, 18], [11, 20], r"task 0: totals must stay as they were \(10\), got 11"),
        ([0.8, 0.9], [10, 20], r"correct must be integers .* got \[0.8, 0.9\]"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_changes_nothing(correct, totals, message):
    matrix = AccuracyMatrix([[9]], [10])
    with pytest.raises(InputError, match=message):
        matrix.add_row(correct, totals)
    assert matrix == AccuracyMatrix([[9]], [10])


def test_numpy_counts_become_integers():
    matrix = AccuracyMatrix()
    matrix.add_row(list(np.array([3, 4])), list(np.array([5, 5])))
    assert matrix.to_dict() == {"correct": [[3, 4]], "totals": [5, 5]}
    assert type(matrix.correct[0][0]) is int


def test_other_messages():
    with pytest.raises(InputError, match="at least one task"):
        AccuracyMatrix().add_row([], [])
    with pytest.raises(InputError, match=r"totals must have one entry per task .* \(1\), got 2"):
        AccuracyMatrix([[1]], [2, 3])
    with pytest.raises(InputError, match="at least one row"):
        summary(AccuracyMatrix())
    with pytest.raises(InputError, match=r"in \[-3, 3\), got 3"):
        worked().row_accuracy(3)
    with pytest.raises(InputError, match=r"in \[0, 3\), got -1"):
        worked().first_row(-1)
    with pytest.raises(DataError, match="key 'totals' is missing"):
        AccuracyMatrix.from_dict({"correct": []})
    with pytest.raises(DataError, match="got 9 of 2"):
        AccuracyMatrix.from_dict({"correct": [[9]], "totals": [2]})
    with pytest.raises(DataError, match="as to_dict writes it"):
        AccuracyMatrix.from_dict({"correct": 3, "totals": [2]})


def test_the_newest_row_is_minus_one():
    assert worked().row_accuracy(-1) == 0.75
