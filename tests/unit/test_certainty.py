"""Probabilities of a learner, and what they are fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import ostinato
from ostinato import Learner, TaskStream
from ostinato.learner.certainty import PREFIX
from ostinato.nn.calibration import Temperature

PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = (PIXELS.reshape(-1, 8, 8) * 15.9).astype(np.uint8)


def digits(classes: list[int], first: int = 0, n: int = 20, validation: float = 0.25, **options: object) -> TaskStream:
    """A stream of ``n`` images of each class, as many test images, and a task per two classes."""
    rows = [np.flatnonzero(np.equal(LABELS, c))[first : first + 2 * n] for c in classes]
    train, test = np.concatenate([r[:n] for r in rows]), np.concatenate([r[n:] for r in rows])
    y = np.repeat(np.arange(len(classes)), n)
    names = [f"digit {c}" for c in classes]
    source = ostinato.arrays(IMAGES[train], y, IMAGES[test], y, class_names=names)
    return ostinato.stream(source, step=2, validation=validation, **options)


def taught(stream: TaskStream, method: str = "ranpac", **options: object) -> Learner:
    learner = Learner(method, precision="fp32", **({"n_random": 50} if method == "ranpac" else {}), **options)
    for task in stream:
        learner.learn(task, augment="none")
    return learner


@pytest.fixture(scope="module")
def stream() -> TaskStream:
    return digits([0, 1, 8, 9])


@pytest.fixture(scope="module")
def learner(stream) -> Learner:
    return taught(stream)


def shown(stream: TaskStream, n: int = 6) -> list[Image.Image]:
    return [stream.test(1).raw(i) for i in range(n)]


def by_hand(learner: Learner, *parts: ostinato.LabeledDataset) -> Temperature:
    """The temperature of a learner on samples."""
    found = Temperature()
    for part in parts:
        samples = part.with_transform(learner.eval_transform)
        x = torch.stack([samples[i][0] for i in range(len(samples))])
        found.add(learner.scores(x), samples.labels, torch.arange(len(learner.class_names)))
    return found


def test_probabilities_are_fitted_on_the_held_out_samples_of_all_tasks(learner, stream):
    """Those of the first task are scored again among all classes."""
    wanted = by_hand(learner, *(task.validation for task in stream))
    assert learner.certainty.temperature.samples == wanted.samples == 20
    assert learner.temperature == pytest.approx(wanted.value(), rel=1e-4)


def test_a_probability_is_the_softmax_of_the_scores_at_the_temperature(learner, stream):
    found = learner.predict(shown(stream), topk=4)
    for one in found:
        scores = torch.tensor(one.scores, dtype=torch.float64)
        assert one.probabilities == pytest.approx((scores / learner.temperature).softmax(0).tolist(), abs=1e-9)
        assert sum(one.probabilities) == pytest.approx(1)
        assert one.scores == sorted(one.scores, reverse=True)


def test_the_calibration_error_is_measured_before_and_after(learner, stream):
    result = learner.evaluate(stream)
    assert result.calibration_error < 0.15
    assert result.uncalibrated_error > 2 * result.calibration_error, "scores of a ridge regression are small"


@pytest.mark.parametrize("method", ["simplecil", "slda"])
def test_other_scales_of_scores_are_found_as_well(method, stream):
    result = taught(stream, method).evaluate(stream)
    assert result.calibration_error < min(0.15, result.uncalibrated_error)


def test_it_is_saved_and_goes_on(learner, stream, tmp_path: Path):
    """Of samples before the load, what they gave is kept."""
    learner.save(tmp_path / "model")
    again = ostinato.load(str(tmp_path / "model"))
    assert again.temperature == learner.temperature
    more = digits([2, 3], after=again)
    again.learn(more.task(0), augment="none")
    wanted = by_hand(again, more.task(0).validation)
    wanted.merge(learner.certainty.temperature)
    assert again.certainty.temperature.samples == wanted.samples == 30
    assert again.temperature == pytest.approx(wanted.value(), rel=1e-4)
    assert again.temperature != pytest.approx(learner.temperature, rel=1e-4)


def test_a_learner_that_was_resumed_scores_all_again(learner, stream):
    again = taught([stream.task(0)])
    state = again.learned_state()
    resumed = Learner("ranpac", precision="fp32", n_random=50)
    resumed.restore(state, again.class_names)
    resumed.remember([stream.task(0)])
    resumed.learn(stream.task(1), augment="none")
    assert torch.equal(resumed.certainty.temperature.sums, learner.certainty.temperature.sums)


def test_without_held_out_samples_there_are_no_probabilities(stream):
    learner = taught(digits([0, 1], validation=0))
    assert learner.temperature is None
    assert learner.predict(shown(stream))[0].probabilities is None
    result = learner.evaluate(digits([0, 1], validation=0))
    assert (result.calibration_error, result.uncalibrated_error is None) == (None, False)


def test_a_model_of_an_earlier_version_has_none_and_gets_none(learner, stream):
    """Its statistics would be of its newest classes alone."""
    old = Learner("ranpac", precision="fp32", n_random=50)
    old.restore({k: v for k, v in learner.learned_state().items() if not k.startswith(PREFIX)}, learner.class_names)
    assert old.temperature is None
    for task in digits([2, 3], after=old):
        old.learn(task, augment="none")
    assert old.temperature is None
    assert old.certainty is None


def test_merged_learners_join_their_held_out_samples():
    parts = [taught(digits(classes)) for classes in ([0, 1], [8, 9])]
    wanted = parts[0].certainty.temperature.sums + parts[1].certainty.temperature.sums
    merged = ostinato.merge(*parts)
    assert merged.certainty.temperature.samples == 20
    assert torch.equal(merged.certainty.temperature.sums, wanted)
    parts[1].certainty = None
    assert ostinato.merge(taught(digits([2, 3])), parts[1]).temperature is None


def test_known_classes_bring_held_out_samples_as_well(stream, tmp_path: Path):
    learner = taught(stream)
    for task in digits([0, 8, 4], first=40, after=learner):
        learner.learn(task, augment="none")
    assert learner.certainty.temperature.samples == 20 + 15
