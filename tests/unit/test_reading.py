"""Reading ahead keeps the order, the bounds and the errors, and predictions of many inputs are those of each alone."""

from __future__ import annotations

import threading
import time

import pytest
from tests.cli.command import ostinato
from tests.conftest import photos

from ostinato import Learner, stream
from ostinato.errors import DataError, InputError
from ostinato.learner import Prediction
from ostinato.reading import THREADS, ahead, batched


def test_results_come_in_order_and_few_are_read_before_they_are_asked_for():
    taken, done = [], []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    def read(i):
        time.sleep(0.002 * (i % 3))
        done.append(i)
        return i * i

    for i, result in enumerate(ahead(read, items(), 8)):
        assert result == i * i
        assert len(taken) <= i + 8
    assert sorted(done) == list(range(50))


def test_an_error_comes_in_its_place():
    def read(i):
        if i == 5:
            raise ValueError("five")
        return i

    results = ahead(read, range(1000), 4)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)


def test_whoever_stops_asking_leaves_no_thread():
    before = threading.active_count()
    results = ahead(lambda i: i, iter(range(1000)), 4)
    next(results)
    assert before < threading.active_count() <= before + THREADS
    results.close()
    assert threading.active_count() == before


def test_batches():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    root = tmp_path_factory.mktemp("p")
    photos(root / "photos", {"red": (200, 0, 0), "blue": (0, 0, 200)}, n=6)
    learner = Learner("simplecil", precision="fp32", eval_batch_size=4)
    for task in stream(str(root / "photos"), step=1):
        learner.learn(task)
    return learner, root


def test_many_are_scored_in_batches_to_the_same_answers(taught, monkeypatch):
    learner, root = taught
    files = sorted((root / "photos").rglob("*.jpg"))
    alone = [learner.predict([file], topk=2)[0] for file in files]
    sizes, scored = [], learner.scores

    def scores(x):
        sizes.append(len(x))
        return scored(x)

    monkeypatch.setattr(learner, "scores", scores)
    together = learner.predict(files, topk=2)
    assert sizes == [4, 4, 4]
    for one, other in zip(alone, together, strict=True):
        assert (one.source, one.classes) == (other.source, other.classes)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_bad_inputs_keep_their_places(taught):
    learner, root = taught
    good = str(root / "photos/red/0.jpg")
    given = [good, str(root / "none.jpg"), DataError("said before"), good, *[str(root / "none.jpg")] * 5, good]
    found = list(learner.predictions(given))
    assert [isinstance(one, Prediction) for one in found] == [True, False, False, True, *[False] * 5, True]
    assert str(found[2]) == "said before"
    assert "none.jpg: there is no such file" in str(found[1])
    with pytest.raises(DataError, match=r"none\.jpg"):
        learner.predict([good, str(root / "none.jpg")])
    with pytest.raises(InputError, match="topk must be at least 1"):
        learner.predictions([good], topk=0)


def test_the_command_says_how_fast_it_was_beside_the_results(taught):
    learner, root = taught
    learner.save(root / "model")
    done = ostinato("predict", root / "model", *[root / "photos/red/0.jpg"] * 70, root / "none.jpg", code=3)
    assert len(done.stdout.splitlines()) == 70
    assert "71 inputs in" in done.stderr
    assert "none.jpg: there is no such file" in done.stderr
    few = ostinato("predict", root / "model", root / "photos")
    assert few.stderr == ""
    assert len(few.stdout.splitlines()) == 12
