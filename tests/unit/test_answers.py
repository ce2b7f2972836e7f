"""Answers sample by sample: what is kept, read back and refused, and differences paired over them."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from tests.conftest import BLUE, GREEN, RED, photos

from ostinato.config import build_config
from ostinato.errors import DataError
from ostinato.evaluation import answers as module
from ostinato.evaluation.answers import Answers, answers_of, read_answers, write_answers
from ostinato.evaluation.evaluator import Evaluation
from ostinato.evaluation.pairing import Difference, common_samples, paired_difference
from ostinato.report.console import Reporter
from ostinato.runs.lifecycle import learn_more, resume, start
from ostinato.runs.session import Session
from ostinato.streams import StreamOptions, TaskStream, open_source


def answers(right, samples=None, labels=None):
    n = len(right)
    ids = np.arange(n, dtype=np.uint64) if samples is None else np.array(samples, np.uint64)
    labels = np.zeros(n, np.int32) if labels is None else np.array(labels, np.int32)
    right = np.array(right, bool)
    return Answers(ids, labels, np.where(right, labels, labels + 1).astype(np.int32), right)


def same(a, b):
    return all(np.array_equal(getattr(a, k), getattr(b, k)) for k in Answers.__dataclass_fields__)


def digits():
    source = open_source("digits")
    options = StreamOptions(tasks=[["0", "1"], ["2", "3"]], validation=0, limit_per_class=6, test_limit_per_class=5)
    return TaskStream(source, options)


# Kept


def test_answers_are_those_of_the_evaluation_in_the_order_of_their_samples():
    groups = [digits().test(i) for i in range(2)]
    n = [len(group) for group in groups]
    predicted = [(7 * i) % 4 for i in range(sum(n))]
    labels = torch.cat([group.labels for group in groups]).tolist()
    right = [a == b for a, b in zip(predicted, labels, strict=True)]
    result = Evaluation(n, [], [], None, None, [], [], sum(n), 1.0, predicted, right)
    got = answers_of(groups, result)
    ids = np.concatenate([group.fingerprints() for group in groups]).tolist()
    want = sorted(zip(ids, labels, predicted, right, strict=True))
    kept = (getattr(got, name).tolist() for name in Answers.__dataclass_fields__)
    assert list(zip(*kept, strict=True)) == want
    assert got.whole


def test_of_too_many_samples_the_same_ones_are_kept_in_every_run(monkeypatch):
    monkeypatch.setattr(module, "MOST_SAMPLES", 7)
    groups = [digits().test(i) for i in range(2)]
    n = [len(group) for group in groups]
    kept = []
    for order in (groups, groups[::-1]):
        result = Evaluation(n, [], [], None, None, [], [], sum(n), 1.0, [0] * sum(n), [True] * sum(n))
        kept.append(answers_of(order, result))
    assert same(*kept)
    assert len(kept[0]) == 7
    assert not kept[0].whole


def test_answers_are_read_as_they_were_written(tmp_path):
    some = answers([True, False, True], [2, 5, 2**64 - 1], [0, 3, 1])
    write_answers(tmp_path / "a.npz", some)
    assert same(read_answers(tmp_path / "a.npz"), some)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["right"].tolist() == [True, False, True]
    empty = answers([])
    write_answers(tmp_path / "a.npz", empty)
    assert same(read_answers(tmp_path / "a.npz"), empty)


def saved(compress=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


def arrays(**changed):
    some = answers([True, False])
    return {k: getattr(some, k) for k in Answers.__dataclass_fields__} | changed


def claiming(n):
    """A file whose header tells of more numbers than there are."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (n,), "fortran_order": False, "descr": "<u8"})
    file = io.BytesIO(saved(**arrays()))
    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.infolist():
            data = header.getvalue() + b"\0" * 16 if member.filename == "samples.npy" else old.read(member)
            new.writestr(zipfile.ZipInfo(member.filename), data)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "not a zip file"),
        (saved(**arrays())[:-30], "not a zip file"),
        (saved(**arrays()).replace(b"\x01\x00PK", b"\x00\x00PK"), "Bad CRC-32"),
        (saved(x=np.zeros(2)), "it holds 'x'"),
        (saved(**arrays(right=np.array([None, 1]))), "has shape"),
        (saved(**arrays(labels=np.zeros(2, np.int64))), "has shape"),
        (saved(**arrays(labels=np.zeros((2, 1), np.int32))), "has shape"),
        (saved(True, **arrays()), "is compressed"),
        (claiming(2**40), "has shape"),
        (saved(**arrays(right=np.zeros(3, bool))), "one answer per sample"),
        (saved(**arrays(samples=np.array([1, 0], np.uint64))), "in the order of the fingerprints"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, data, says):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=says):
        read_answers(tmp_path / "a.npz")


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    write_answers(tmp_path / "a.npz", answers([True] * 1000))
    monkeypatch.setattr(module, "MOST_SAMPLES", 10)
    with pytest.raises(DataError, match="at most"):
        read_answers(tmp_path / "a.npz")


# Paired


def test_the_difference_is_the_mean_of_pairs_with_its_standard_error():
    rng = np.random.default_rng(0)
    a, b = rng.random(500) < 0.8, rng.random(500) < 0.7
    got = paired_difference([(answers(a), answers(b))])
    d = a.astype(float) - b
    assert got.mean == pytest.approx(a.mean() - b.mean())
    assert got.error == pytest.approx(d.std(ddof=1) / np.sqrt(500))
    assert (got.samples, got.pairs) == (500, 1)
    assert str(got) == f"{100 * got.mean:+.1f} ± {100 * got.error:.1f}"


def test_only_common_samples_are_paired_by_what_they_hold():
    a, b = answers([1, 0, 1, 1], [1, 3, 5, 9]), answers([0, 0, 1], [3, 5, 7])
    ids, d = common_samples(a, b)
    assert ids.tolist() == [3, 5]
    assert d.tolist() == [0, 1]
    assert paired_difference([(answers([1], [1]), answers([1], [2]))]) is None
    assert paired_difference([(answers([1], [1]), answers([1], [1]))]) is None, "one sample has no spread"
    assert paired_difference([]) is None


def test_samples_of_one_content_are_compared_by_their_shares():
    """Two of three are right here and one of two there, whichever those were."""
    ids, d = common_samples(answers([1, 1, 0, 0], [4, 4, 4, 6]), answers([0, 1, 1], [4, 4, 6]))
    assert ids.tolist() == [4, 4, 6]
    assert d.tolist() == pytest.approx([2 / 3 - 1 / 2] * 2 + [-1])
    twice = paired_difference([(answers([1, 1, 0, 0], [4, 4, 6, 6]), answers([0, 0, 0, 0], [4, 4, 6, 6]))])
    once = paired_difference([(answers([1, 0], [4, 6]), answers([0, 0], [4, 6]))])
    assert twice.error == pytest.approx(once.error), "a copy is no further evidence"


def test_over_seeds_the_error_has_a_part_between_samples_and_one_between_seeds():
    rng = np.random.default_rng(1)
    n, base = 4000, answers(np.zeros(4000))
    rights = [rng.random(n) < p for p in (0.2, 0.3, 0.4)]
    got = paired_difference([(answers(r), base) for r in rights])
    d = np.array(rights, float)
    between_seeds = d.mean(1).std(ddof=1) / np.sqrt(3)
    between_samples = d.mean(0).std(ddof=1) / np.sqrt(n)
    assert got.mean == pytest.approx(d.mean())
    assert got.error == pytest.approx(np.hypot(between_seeds, between_samples), rel=1e-6)
    assert (got.samples, got.pairs) == (3 * n, 3)


def test_seeds_with_other_samples_are_as_many_more_samples():
    """What differs is independent then, and equal means leave nothing between the seeds."""
    right = np.tile([1, 0, 0, 0], 100)
    pairs = [(answers(right, range(s, s + 400)), answers(np.zeros(400), range(s, s + 400))) for s in (0, 400)]
    got = paired_difference(pairs)
    assert got.mean == pytest.approx(0.25)
    assert got.error == pytest.approx(np.tile(right, 2).std(ddof=1) / np.sqrt(800))


@pytest.mark.parametrize(
    ("mean", "error", "noise"), [(0.02, 0.011, True), (-0.02, 0.011, True), (0.02, 0.0099, False), (0.0, 0.0, True)]
)
def test_less_than_two_standard_errors_are_noise(mean, error, noise):
    difference = Difference(mean, error, 10, 1)
    assert difference.within_noise is noise
    assert ("within noise" in str(difference)) is noise


# In a run


OPTIONS = {
    "data": {"path": "digits", "validation": 0, "limit_per_class": 6, "test_limit_per_class": 5},
    "stream": {"tasks": [["0", "1"], ["2", "3"]]},
    "precision": "fp32",
}


def test_a_run_keeps_the_answers_of_its_newest_scoring(tmp_path):
    result = start(build_config({"method": {"name": "simplecil"}}, OPTIONS), tmp_path / "run", Reporter())
    kept = read_answers(tmp_path / "run/answers.npz")
    stream = digits()
    want = np.sort(np.concatenate([stream.test(i).fingerprints() for i in range(2)]))
    assert np.array_equal(kept.samples, want)
    assert kept.right.mean() == pytest.approx(result["last_accuracy"])
    assert np.array_equal(kept.right, kept.labels == kept.predicted)


def test_a_resumed_run_keeps_the_answers_of_an_uninterrupted_one(tmp_path, monkeypatch):
    config = build_config({"method": {"name": "simplecil"}}, OPTIONS)
    start(config, tmp_path / "whole", Reporter())
    save, calls = Session._checkpoint, []

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 4:  # after the second task was scored, before that is in a checkpoint
            raise KeyboardInterrupt
        save(self, *args)

    monkeypatch.setattr(Session, "_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        start(config, tmp_path / "cut", Reporter())
    monkeypatch.undo()
    (tmp_path / "cut/answers.npz").write_bytes(b"what a disk made of it")
    resume(tmp_path / "cut", {}, Reporter())
    assert (tmp_path / "cut/answers.npz").read_bytes() == (tmp_path / "whole/answers.npz").read_bytes()


def test_a_continuation_keeps_answers_of_its_own(tmp_path):
    photos(tmp_path / "one", {"red": RED, "green": GREEN}, n=8)
    photos(tmp_path / "two", {"blue": BLUE}, n=8)
    photos(tmp_path / "old", {"red": RED, "green": GREEN}, n=3, seed=5)
    data = {"path": str(tmp_path / "one"), "validation": 0}
    start(
        build_config({"method": {"name": "simplecil"}, "data": data, "precision": "fp32"}), tmp_path / "r", Reporter()
    )
    before = (tmp_path / "r/answers.npz").read_bytes()
    new = {"data": {"path": str(tmp_path / "two")}, "eval": {"data": str(tmp_path / "old")}}
    result = learn_more(tmp_path / "r", new, Reporter())
    assert (tmp_path / "r/answers.npz").read_bytes() == before
    kept = read_answers(tmp_path / "r/learn-001/answers.npz")
    assert sorted(set(kept.labels.tolist())) == [0, 1, 2]
    assert kept.right.mean() == pytest.approx(result["last_accuracy"])
