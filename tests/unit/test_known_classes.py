"""More samples of classes that were learned: parts, methods and the learner."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_closed_form import C, D, beside, ridge, samples
from tests.unit.test_merging import IMAGES, LABELS, inputs, same
from torch import Tensor

import ostinato
from ostinato.contract.harness import SETTINGS, learn, learn_task_of, make
from ostinato.contract.tiny_models import tiny_stream
from ostinato.errors import InputError
from ostinato.learner import Learner
from ostinato.learner.editing import merge_classes, remove_class, rename_class
from ostinato.lookup import methods
from ostinato.nn import ClassMeans
from ostinato.nn.discriminant import LinearDiscriminant
from ostinato.nn.mahalanobis import ClassMahalanobis
from ostinato.streams import LabeledDataset, arrays
from ostinato.training.loop import update

PARTS: list[Callable[[], Any]] = [ridge, lambda: LinearDiscriminant(D), lambda: ClassMahalanobis(D), beside]
OPTIONS: dict[str, dict[str, Any]] = {
    "simplecil": {},
    "slda": {},
    "fecam": {},
    "ranpac": {"n_random": 200},
    "duet": {"n_random": 200, "train": {"epochs": 1}},
}
PLAIN = {"encoders": "plain", "n_random": 200, "n_gaussian": 20}
"""Options of duet without training."""

HALF = np.arange(len(LABELS)) % 2 == 0


# Parts


@pytest.mark.parametrize("make_part", PARTS)
def test_parts_take_more_samples_of_known_classes(make_part: Callable[[], Any]) -> None:
    """Two classes, then more of one beside the others, then more of all."""
    x, y = samples(90)
    whole, apart = make_part(), make_part()
    whole.add(x, y, C)
    at = torch.arange(90)
    for rows, new in (((y < 2) & (at < 40), 2), ((y > 0) & (at >= 40) & (at < 70), C - 2)):
        apart.add(x[rows], y[rows], new)
    rest = ~((y < 2) & (at < 40)) & ~((y > 0) & (at >= 40) & (at < 70))
    apart.add(x[rest], y[rest], 0)
    assert torch.allclose(apart(x), whole(x), rtol=1e-5, atol=1e-5)


def test_the_scatter_of_a_class_that_goes_on_is_that_of_all_its_samples() -> None:
    """By hand: 0 and 2, then 4, scatter by 8 about their mean 2."""
    part = LinearDiscriminant(1)
    part.add(torch.tensor([[0.0], [2.0]]), torch.tensor([0, 0]), 1)
    assert part.scatter.tolist() == [[2.0]]
    part.add(torch.tensor([[4.0]]), torch.tensor([0]), 0)
    assert part.scatter.tolist() == [[8.0]]


@pytest.mark.parametrize("make_part", PARTS)
def test_joined_classes_of_parts_are_one_class_of_all_samples(make_part: Callable[[], Any]) -> None:
    x, y = samples(90)
    part, whole = make_part(), make_part()
    part.add(x, y, C)
    numbers = torch.tensor([min(c, C - 2) for c in range(C)])
    part.relabel(numbers)
    whole.add(x, numbers[y], C - 1)
    assert torch.allclose(part(x), whole(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make_part", PARTS)
def test_a_class_that_a_part_forgets_was_never_there(make_part: Callable[[], Any]) -> None:
    x, y = samples(90)
    part, whole = make_part(), make_part()
    part.add(x, y, C)
    if hasattr(part, "forget"):
        with pytest.raises(InputError, match=r"must be all \d+ that were learned of the class, got 1\."):
            part.forget(x[y == 1][:1], 1)
        with pytest.raises(InputError, match="must be those that were learned"):
            part.forget(x[y == 0], 1)
        part.forget(x[y == 1], 1)
    numbers = torch.tensor([0, -1, *range(1, C - 1)])
    part.relabel(numbers)
    whole.add(x[y != 1], numbers[y[y != 1]], C - 1)
    assert torch.allclose(part(x), whole(x), rtol=1e-5, atol=1e-5)


def test_a_dropped_class_of_a_shared_covariance_leaves_its_scatter_there() -> None:
    """By hand: classes at 0, 2 and 10, 14 scatter by 2 and 8."""
    part = LinearDiscriminant(1)
    part.add(torch.tensor([[0.0], [2.0], [10.0], [14.0]]), torch.tensor([0, 0, 1, 1]), 2)
    part.relabel(torch.tensor([0, -1]))
    assert part.scatter.tolist() == [[10.0]]
    assert part.class_means.sums.tolist() == [[2.0]]


# Learner


def named(classes: list[int], rows: np.ndarray) -> ostinato.Source:
    """Digits of some classes and rows."""
    mine = np.isin(LABELS, classes) & rows
    names = [f"digit {c}" for c in classes]
    return arrays(IMAGES[mine], np.array([classes.index(c) for c in LABELS[mine]]), class_names=names)


def everything(source: ostinato.Source) -> LabeledDataset:
    """All training samples of a source."""
    return LabeledDataset(source.train, np.arange(len(source.train)), source.train.labels, seed=0)


def taught(name: str, *parts: tuple[list[int], np.ndarray], options: dict[str, Any] | None = None) -> Learner:
    """A learner of digits in tasks, each of some classes and rows."""
    learner = Learner(name, precision="fp32", **(OPTIONS[name] if options is None else options))
    for classes, rows in parts:
        for task in ostinato.stream(named(classes, rows), after=learner, step=len(classes), validation=0):
            learner.learn(task, augment="none")
    return learner


ALL = np.ones(len(LABELS), bool)


@pytest.mark.parametrize("name", OPTIONS)
def test_closed_forms_learn_known_classes_as_if_all_had_been_there(name: str) -> None:
    """Known and new classes beside each other, then known ones alone."""
    first = ([0, 1], HALF)
    learner = taught(name, first, ([3, 1, 2], ~((LABELS == 3) & HALF)), ([0, 3], ALL))
    assert learner.class_names == ["digit 0", "digit 1", "digit 3", "digit 2"]
    assert learner.samples == [20] * 4
    assert learner.method.task_sizes.tolist() == [2, 2]
    wanted = taught(name, first, ([3, 2], ALL), ([0, 1], ALL))  # the same first task, which duet adapts to
    assert same(learner.scores(inputs()), wanted.scores(inputs()))
    if name != "duet":
        whole = taught(name, ([0, 1], ALL), ([3, 2], ALL))
        assert same(learner.scores(inputs()), whole.scores(inputs()))


def test_a_learner_that_went_on_is_saved_with_its_counts(tmp_path: Path) -> None:
    learner = taught("slda", ([0, 1], HALF), ([1, 2], ~HALF))
    learner.save(tmp_path / "a")
    again = ostinato.load(str(tmp_path / "a"))
    assert again.samples == [10, 20, 10]
    assert torch.equal(again.scores(inputs()), learner.scores(inputs()))
    source = named([0, 1, 2], ALL)
    stream = ostinato.stream(source, after=again, validation=0)
    assert stream.repeated == 40
    known = stream.task(0).known
    assert known is not None
    assert len(known) == 20


def test_what_learns_nothing_more_says_so_and_stays_as_it_is() -> None:
    learner = taught("l2p", ([0, 1], HALF), options={"train": {"epochs": 1}})
    before = learner.scores(inputs())
    stream = ostinato.stream(named([1, 2], ~HALF), after=learner, validation=0)
    with pytest.raises(InputError, match=r"l2p knows 'digit 1', and no part of this method.*'duet' and 'ranpac'"):
        learner.learn(stream.task(0))
    assert torch.equal(learner.scores(inputs()), before)
    assert learner.class_names == ["digit 0", "digit 1"]


# Changes of classes


@pytest.mark.parametrize(("name", "options"), (OPTIONS | {"duet": PLAIN}).items())
def test_a_removed_class_is_as_if_it_had_never_been_learned(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    first = ([0, 1], ALL)
    learner, wanted = (
        taught(name, first, ([3, 2], ALL), options=options),
        taught(name, first, ([2], ALL), options=options),
    )
    shares = [] if learner.method.shares is None else [learner.method.shares]
    assert remove_class(learner, "digit 3", everything(named([3], ALL))) is None
    assert (learner.class_names, learner.samples) == (["digit 0", "digit 1", "digit 2"], [20] * 3)
    assert learner.method.task_sizes.tolist() == [2, 1]
    assert same(learner.scores(inputs()), wanted.scores(inputs()))
    assert np.array_equal(learner.used, wanted.used), "its photos may be learned again, under another name"
    learner.save(tmp_path / "a")
    assert torch.equal(ostinato.load(str(tmp_path / "a")).scores(inputs()), learner.scores(inputs()))
    # Without its samples, the class is gone, and what stays is named.
    learner = taught(name, first, ([3], ALL), options=options)
    assert remove_class(learner, "digit 3") == " and ".join([*shares, "its covariance of plain features"])
    assert learner.scores(inputs()).shape[1] == 2
    assert learner.method.task_sizes.tolist() == [2]
    with pytest.raises(InputError, match="at least 2 classes must stay, but there are 2"):
        remove_class(learner, "digit 1")


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "duet"])
def test_merged_classes_are_one_of_all_samples(name: str) -> None:
    learner = taught(name, ([0, 1], ALL), ([3, 2], ALL))
    merge_classes(learner, "digit 2", "digit 0")
    assert (learner.class_names, learner.samples) == (["digit 1", "digit 3", "digit 2"], [20, 20, 40])
    assert learner.method.task_sizes.tolist() == [1, 2]
    both = np.where(LABELS == 0, 2, LABELS)
    rows = np.isin(both, [1, 2, 3])
    names = ["digit 1", "digit 3", "digit 2"]
    source = arrays(IMAGES[rows], np.array([[1, 3, 2].index(c) for c in both[rows]]), class_names=names)
    whole = Learner(name, precision="fp32", **OPTIONS[name])
    for task in ostinato.stream(source, step=3, validation=0):
        whole.learn(task, augment="none")
    assert same(learner.scores(inputs()), whole.scores(inputs()))


def test_a_class_gets_a_name_that_no_other_is_nearly_called() -> None:
    learner = taught("simplecil", ([0, 1], HALF))
    before = learner.scores(inputs())
    rename_class(learner, "digit 1", "Digit 1")
    rename_class(learner, "Digit 1", "one")
    assert learner.class_names == ["digit 0", "one"]
    assert torch.equal(learner.scores(inputs()), before)
    for wrong, message in ((" one", "no spaces around it"), ("", "a character"), ("Digit  0", "is nearly the name of")):
        with pytest.raises(InputError, match=message):
            rename_class(learner, "one", wrong)
    with pytest.raises(InputError, match="no class 'digit 1'"):
        rename_class(learner, "digit 1", "two")
    with pytest.raises(InputError, match="'one' twice"):
        merge_classes(learner, "one", "one")


def test_what_was_trained_together_stays_together() -> None:
    learner = taught("l2p", ([0, 1, 2], HALF), options={"train": {"epochs": 1}})
    for change in (lambda: remove_class(learner, "digit 1"), lambda: merge_classes(learner, "digit 1", "digit 0")):
        with pytest.raises(InputError, match="l2p has trained its classes together"):
            change()
    assert learner.scores(inputs()).shape[1] == len(learner.class_names) == 3


# Methods


REFINING: list[tuple[str, dict[str, Any]]] = [
    ("lieprompt", {}),
    ("cl_lora", {}),
    ("dualprompt", {"keys": "gaussians"}),
    ("soft_tf", {"keys": "gaussians"}),
    ("layer_grouped", {"fusion": "soft_query"}),
]


def statistics(method: Any) -> dict[str, Tensor]:
    """Tensors of class means."""
    parts = [(name, part) for name, part in method.named_modules() if isinstance(part, ClassMeans)]
    return {f"{name}.{key}": value.clone() for name, part in parts for key, value in part.state_dict().items()}


@pytest.mark.parametrize(("name", "options"), REFINING)
def test_statistics_go_on_and_what_was_trained_stays(name: str, options: dict[str, Any]) -> None:
    method, stream = make(name, **options), tiny_stream()
    learn(method, stream)
    before = {key: value.clone() for key, value in method.learned_state().items()}
    counts = statistics(method)
    again = learn_task_of(method, stream, 0)
    labels = torch.tensor([int(again.train[i][1]) for i in range(len(again.train))])
    update(method, method.refine, again, SETTINGS)
    changed = {key for key, value in method.learned_state().items() if not torch.equal(before[key], value)}
    trained = {key for key, _ in method.named_parameters()}
    assert changed
    assert not changed & trained
    for key, value in statistics(method).items():
        if key.endswith("counts"):
            added = torch.bincount(labels, minlength=len(value))
            assert torch.equal(value, counts[key] + added)


def test_methods_that_refine_are_those_that_say_so() -> None:
    """A method names a part if, and only if, it overrides the hook."""
    for name, cls in methods().items():
        overrides = cls.refine is not ostinato.Method.refine
        assert overrides == (cls.refines is not ostinato.Method.refines), name
