"""Probabilities of a learner, and what they are fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tests.conftest import save_bert, text_tables

import ostinato
from ostinato import Learner, TaskStream
from ostinato.learner.certainty import PREFIX
from ostinato.learner.editing import remove_class
from ostinato.nn.calibration import Temperature

PIXELS, LABELS = (part[np.random.default_rng(0).permutation(1797)] for part in load_digits(return_X_y=True))
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


@pytest.mark.parametrize("method", ["ranpac", "simplecil"])
def test_the_calibration_error_is_measured_before_and_after(method, learner, stream):
    """The softmax of cosines, and of scores of a ridge regression, is nearly flat."""
    result = (learner if method == "ranpac" else taught(stream, method)).evaluate(stream)
    assert result.calibration_error < 0.15
    assert result.uncalibrated_error > 3 * result.calibration_error


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
    again.save(tmp_path / "model")
    more = ostinato.load(str(tmp_path / "model"))
    assert torch.equal(more.certainty.earlier_distances, again.certainty.typicality.distances)
    assert more.certainty.typicality.samples == 30


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


# Unknown inputs


def black(n: int = 3) -> list[Image.Image]:
    """Images of one pixel."""
    return [Image.new("RGB", (1, 1), (80 * i, 20, 200 - 60 * i)) for i in range(n)]


def test_what_is_far_from_all_classes_is_unknown(learner, stream):
    found = learner.predict([*shown(stream), *black()], topk=2, reject_rate=0.05)
    assert [one.answer for one in found[-3:]] == ["unknown"] * 3
    assert all(one.typicality == pytest.approx(1 / 21) for one in found[-3:]), "farther than all 20 held-out samples"
    assert [one.classes[0] for one in found] == [one.classes[0] for one in learner.predict([*shown(stream), *black()])]
    known = [one for group in range(2) for one in learner.predict(shown_all(stream, group), reject_rate=0.05)]
    assert 0 < sum(one.unknown for one in known) < 0.2 * len(known), "some, but few of the classes learned"
    assert all(one.answer == one.classes[0] for one in known if not one.unknown)


def shown_all(stream: TaskStream, i: int) -> list[Image.Image]:
    test = stream.test(i)
    return [test.raw(j) for j in range(len(test))]


def test_typicality_is_the_rank_among_held_out_samples(learner, stream):
    """A held-out sample is at least as far as itself, and the farthest as far as no other."""
    held_out = [task.validation.raw(i) for task in stream for i in range(len(task.validation))]
    found = sorted(round(one.typicality * 21) for one in learner.predict(held_out, reject_rate=0.05))
    assert found == list(range(2, 22))


def test_an_answer_does_not_depend_on_its_batch(learner, stream):
    images = [*shown(stream), *black()]
    together = learner.predict(images, topk=4, reject_rate=0.1, threshold=0.6)
    for image, one in zip(images, together, strict=True):
        (alone,) = learner.predict([image], topk=4, reject_rate=0.1, threshold=0.6)
        assert (alone.answer, alone.typicality) == (one.answer, one.typicality)
        assert alone.probabilities == pytest.approx(one.probabilities, abs=1e-5)


def test_an_answer_below_the_threshold_is_unknown(learner, stream):
    images = shown_all(stream, 0)
    found = learner.predict(images)
    limit = sorted(one.probabilities[0] for one in found)[10]
    for one in learner.predict(images, threshold=limit):
        assert one.unknown == (one.probabilities[0] < limit)
        assert one.typicality is None
    assert sum(one.unknown for one in learner.predict(images, threshold=limit)) == 10


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": 1.0}, "threshold must lie between 0 and 1, got 1.0"),
        ({"reject_rate": 0.0}, "reject_rate must lie between 0 and 1, got 0.0"),
        ({"reject_rate": 0.01}, r"needs 99 held-out samples, but this model has 20. It can take 0.048 or more"),
        ({"topk": 0}, "topk must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(learner, stream, options, says):
    with pytest.raises(ostinato.InputError, match=says):
        learner.predict(shown(stream), **options)


def test_models_without_statistics_reject_nothing(stream):
    learner = taught(digits([0, 1], validation=0))
    with pytest.raises(ostinato.InputError, match="threshold needs probabilities, and this model has none"):
        learner.predict(shown(stream), threshold=0.5)
    with pytest.raises(ostinato.InputError, match=r"needs 19 held-out samples, but this model has 0\. Learn it again"):
        learner.predict(shown(stream), reject_rate=0.05)
    learner.certainty = None
    with pytest.raises(ostinato.InputError, match="this model of an earlier version does not have"):
        learner.predict(shown(stream), reject_rate=0.05)


def test_a_method_that_trains_its_encoder_is_judged_by_the_plain_one(learner, stream, tmp_path: Path):
    """Distances are those of a method that trains nothing, and a loaded model has them as well."""
    tuned = taught(stream, "finetune", train={"epochs": 1, "lr": 0.01, "batch_size": 30})
    assert torch.allclose(tuned.certainty.typicality.distances, learner.certainty.typicality.distances, rtol=1e-4)
    tuned.save(tmp_path / "model")
    again = ostinato.load(str(tmp_path / "model"))
    images = [*shown(stream), *black()]
    want = [one.typicality for one in learner.predict(images, reject_rate=0.05)]
    assert [one.typicality for one in again.predict(images, reject_rate=0.05)] == want


def test_texts_are_rejected_as_well(tmp_path: Path):
    save_bert(tmp_path / "bert")
    stream = ostinato.stream(str(text_tables(tmp_path / "texts", 2)), validation=0.3)
    learner = Learner("simplecil", backbone=str(tmp_path / "bert"), precision="fp32")
    learner.learn(stream.task(0))
    found = learner.predict(["w1 w2", "w3 " * 10], reject_rate=0.3)
    assert all(one.probabilities and one.typicality for one in found)


def test_sums_of_typicality_are_those_of_all_samples_at_once(learner, stream):
    """Mahalanobis distances by hand."""
    typicality = learner.certainty.typicality
    train = ostinato.LabeledDataset.concat([task.train for task in stream]).with_transform(learner.eval_transform)
    x, y = torch.stack([train[i][0] for i in range(len(train))]), train.labels
    features = learner.method.query(x).double()
    means = torch.stack([features[y == c].mean(0) for c in range(4)])
    assert torch.allclose(typicality.classes.class_means.means().double(), means, atol=1e-5)
    precision = torch.linalg.inv(typicality.classes.covariance())
    apart = features[:5, None] - means[None]
    wanted = torch.einsum("ncd,de,nce->nc", apart, precision, apart).amin(1)
    assert torch.allclose(typicality.distance(features[:5]), wanted, rtol=1e-6)


def test_removed_and_merged_learners_keep_their_sums_right(stream):
    both = taught(digits([0, 1, 8, 9]))
    parts = [taught(digits(classes)) for classes in ([0, 1], [8, 9])]
    merged = ostinato.merge(*parts)
    want = both.certainty.typicality.classes
    assert torch.allclose(merged.certainty.typicality.classes.scatter, want.scatter, rtol=1e-5, atol=1e-6)
    assert merged.certainty.typicality.samples == 20
    task = stream.task(0)
    one = task.train.subset((task.train.labels == 1).nonzero().flatten())
    assert remove_class(both, "digit 1", one) is None
    assert len(both.certainty.typicality.classes) == 3
    rest = taught(digits([0, 8, 9])).certainty.typicality.classes
    assert torch.allclose(both.certainty.typicality.classes.scatter, rest.scatter, rtol=1e-5, atol=1e-6)
    assert both.predict(black(), reject_rate=0.05)[0].unknown


def test_tensors_that_do_not_fit_are_refused(learner):
    for key, value in (
        ("typicality.classes.scatter", torch.zeros(3, 3)),
        ("typicality.distances", torch.zeros(2, 2)),
        ("earlier_distances", torch.zeros(2, 2)),
        ("temperature.sums", torch.zeros(2)),
    ):
        state = learner.learned_state() | {PREFIX + key: value.double()}
        with pytest.raises(ostinato.DataError, match="do not fit ranpac"):
            Learner("ranpac", precision="fp32", n_random=50).restore(state, learner.class_names)
