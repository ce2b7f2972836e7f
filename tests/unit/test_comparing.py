"""Runs side by side: what is compared sample by sample, and what is kept apart with the reason."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tests.conftest import RECORD

from ostinato.errors import DataError, InputError
from ostinato.evaluation.answers import Answers, write_answers
from ostinato.report.comparing import Comparison
from ostinato.runs.rundir import RunDir

N = 200
RNG = np.random.default_rng(0)
BASE = RNG.random(N) < 0.7


def run(folder, method, right=BASE, seed=0, samples=None, train=80, options=None, record=True, **summary):
    """A finished run of one task of two classes."""
    dirs = RunDir(folder)
    dirs.root.mkdir(parents=True)
    if record:
        stream = RECORD["stream"] | {
            "tasks": [
                {
                    "index": 0, "classes": ["a", "b"], "labels": [0, 2], "digests": {},
                    "counts": {"train": 2 * train, "validation": 0, "test": N},
                }
            ]
        }  # fmt: skip
        dirs.write_record(RECORD | {"method": method, "stream": stream, "options": options or {}})
    right = np.asarray(right, bool)
    ids = np.arange(len(right), dtype=np.uint64) if samples is None else np.asarray(samples, np.uint64)
    labels = np.zeros(len(right), np.int32)
    write_answers(dirs.answers, Answers(ids, labels, (~right).astype(np.int32), right))
    known = {"method": method, "last_accuracy": float(right.mean()), "seed": seed, "stream": "x", "tasks": 1}
    dirs.write_summary(known | {"scored_on": "test", "protocol": "sample", "warnings": []} | summary)
    return folder


def better(by, right=BASE):
    """The same answers, but right on so many more samples."""
    right = right.copy()
    right[np.flatnonzero(~right)[:by]] = True
    return right


def cells(comparison):
    return {row["run"]: row["paired"] for group in comparison.groups() for row in group.summaries}


def test_runs_are_compared_with_the_closed_form_on_the_same_samples(tmp_path):
    one = run(tmp_path / "a", "ranpac")
    two, three = run(tmp_path / "b", "l2p", better(30)), run(tmp_path / "c", "coda_prompt", better(2))
    got = Comparison([two, one, three])
    error = 100 * np.sqrt(0.15 * 0.85 / (N - 1))
    assert cells(got) == {"a": "reference", "b": f"+15.0 ± {error:.1f}", "c": "+1.0 ± 0.7, within noise"}
    assert [group.heading for group in got.groups()] == [None]
    assert got.notes()[0].startswith(f"difference: points against ranpac ({one})")
    row = got.summaries()[0]
    assert row["difference"] == pytest.approx(0.15)
    assert (row["against"], row["difference_samples"], row["not_comparable"]) == (str(one), N, None)


def test_without_a_reference_nothing_is_paired(tmp_path):
    got = Comparison([run(tmp_path / "a", "l2p"), run(tmp_path / "b", "l2p")])
    assert cells(got) == {"a": None, "b": None}
    assert got.notes() == []
    single = Comparison([tmp_path / "a"])
    assert single.summaries() == [single.all[0].run.summary]


def test_any_run_can_be_the_reference(tmp_path):
    one, two = run(tmp_path / "a", "l2p"), run(tmp_path / "b", "ranpac", better(4))
    assert cells(Comparison([two], [one])) == {"a": "reference", "b": "+2.0 ± 1.0"}
    assert cells(Comparison([one, two], [one])) == {"a": "reference", "b": "+2.0 ± 1.0"}


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({"scored_on": "validation"}, "scored on validation, not on test"),
        ({"protocol": "batch(24), 7 shots"}, r"protocol batch\(24\), 7 shots, not sample"),
        ({"train": 20}, "20 training samples a class, not 80"),
        ({"samples": range(50, N + 50)}, "scored on 200 samples, 150 of them among the 200 there"),
        ({"samples": range(N, 2 * N)}, "scored on 200 samples, none of them among the 200 there"),
        ({"right": BASE[:150]}, "scored on 150 samples, 150 of them among the 200 there"),
    ],
)
@pytest.mark.parametrize("method", ["ranpac", "l2p"])
def test_what_cannot_be_compared_stands_apart_with_the_reason(tmp_path, what, reason, method):
    one, two = run(tmp_path / "a", method), run(tmp_path / "b", "coda_prompt", better(30))
    other = run(tmp_path / "c", "l2p" if method == "ranpac" else "dualprompt", **what)
    got = Comparison([one, other, two])
    together, apart = got.groups()
    assert together.heading is None
    assert [row["run"] for row in together.summaries] == ["a", "b"]
    assert [(row["run"], row["paired"]) for row in apart.summaries] == [("c", None)]
    assert re.fullmatch(f"Not comparable with {re.escape(f'{one}')}: {reason} {re.escape(f'({other})')}", apart.heading)
    assert re.fullmatch(reason, got.summaries()[1]["not_comparable"])


def test_several_reasons_are_all_named(tmp_path):
    one, two = run(tmp_path / "a", "ranpac"), run(tmp_path / "b", "l2p", scored_on="validation", train=5)
    assert Comparison([one, two]).summaries()[1]["not_comparable"] == (
        "scored on validation, not on test; 5 training samples a class, not 80"
    )


def test_seeds_are_paired_and_then_averaged(tmp_path):
    bases = [RNG.random(N) < 0.7 for _ in range(3)]
    runs = [run(tmp_path / f"r{s}", "ranpac", bases[s], seed=s) for s in range(3)]
    runs += [run(tmp_path / f"m{s}", "l2p", better(10 * s, bases[s]), seed=s) for s in range(3)]
    got = Comparison(runs)
    assert [row["difference"] for row in got.summaries()[3:]] == pytest.approx([0, 0.05, 0.1])
    (line,) = [note for note in got.notes() if "over seeds" in note]
    assert line.startswith("l2p over seeds 0, 1, 2: +5.0 ± ")
    pooled = {row["difference_over_seeds"] for row in got.summaries()[3:]}
    assert [pytest.approx(0.05)] == list(pooled)
    assert got.summaries()[3]["difference_over_seeds_error"] > 0.05 / np.sqrt(3) / np.sqrt(3)
    assert got.summaries()[0]["difference_over_seeds"] is None


def test_other_options_or_a_seed_twice_are_no_seeds_of_one_experiment(tmp_path):
    runs = [run(tmp_path / f"r{s}", "ranpac", seed=s) for s in range(2)]
    runs += [run(tmp_path / f"m{s}", "l2p", better(5), seed=s, options={"length": s}) for s in range(2)]
    runs += [run(tmp_path / f"n{i}", "dualprompt", better(5)) for i in range(2)]
    assert not any("over seeds" in note for note in Comparison(runs).notes())


def test_a_seed_without_reference_is_told(tmp_path):
    one, two = run(tmp_path / "a", "ranpac"), run(tmp_path / "b", "l2p", seed=4)
    got = Comparison([one, two])
    assert cells(got)["b"] is None
    assert f"{two}: no difference, since no reference has its seed (4)." in got.notes()


def test_two_references_of_one_seed_are_ambiguous(tmp_path):
    one, two = run(tmp_path / "a", "ranpac"), run(tmp_path / "b", "ranpac", better(3))
    got = Comparison([one, two])
    assert got.notes()[0] == f"No reference: {one} and {two} both have seed 0. Choose one with --against RUN."
    assert cells(got) == {"a": None, "b": None}
    with pytest.raises(InputError, match="--against must name one run per seed"):
        Comparison([one], [one, two])
    assert cells(Comparison([one, two], [two]))["a"] == "-1.5 ± 0.9, within noise"


def test_runs_without_answers_or_record_are_still_shown(tmp_path):
    one, two = run(tmp_path / "a", "ranpac"), run(tmp_path / "b", "l2p", record=False)
    (two / "answers.npz").unlink()
    three = run(tmp_path / "c", "l2p", stream="y")
    (three / "answers.npz").unlink()
    (three / "record.json").write_text("{}")
    got = Comparison([one, two, three])
    assert f"{two}: no difference, since {two} keeps no answers to its test samples; run it again." in got.notes()
    assert got.summaries()[2]["not_comparable"] == "scored on y, not on x"
    assert any(note.startswith(f"{three}: its data are not compared. ") for note in got.notes())


def test_answers_of_another_scoring_are_refused(tmp_path):
    one, two = run(tmp_path / "a", "ranpac"), run(tmp_path / "b", "l2p")
    run(tmp_path / "c", "l2p", better(20))
    (tmp_path / "c/answers.npz").replace(two / "answers.npz")
    with pytest.raises(DataError, match=r"says that .* of its samples are right, and the summary beside it"):
        Comparison([one, two])
    assert json.dumps(Comparison([two]).summaries()), "alone it is not compared"
