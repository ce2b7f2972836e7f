"""A frozen term beside the scores, heads that are solved for, and a head with alignment alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.contract.harness import SETTINGS, inputs_of, learn, learn_task_of, make, scores
from ostinato.contract.tiny_models import tiny_stream
from ostinato.errors import InputError
from ostinato.methods.base import Method
from ostinato.methods.parts.alignment import DiscriminantAlignment
from ostinato.methods.parts.frozen_term import DiscriminantTerm
from ostinato.nn import TaskHeads
from ostinato.training.loop import learn_task

FEW = {"align": {"epochs": 1, "samples": 8}}
SYSTEMS: dict[str, dict[str, Any]] = {
    "layer_grouped": FEW | {"length": 2, "fusion": "soft_query"},
    "lieprompt": FEW | {"pool_size": 2, "length": 1},
    "soft_tf": {"base": "none", "variant": "attn"},
    "cl_lora": {"rank": 2},
}
"""Methods with edits, with options that keep training short."""

CORNERS = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
"""Deviations from the mean of a class, whose covariance is a multiple of the identity, as is the shrunk one."""


class Given:
    """A task with given features and labels."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.both = features, labels
        self.classes = range(int(labels.min()), int(labels.max()) + 1)

    def extract_features(self, features: Any) -> tuple[Tensor, Tensor]:
        return features(self.both[0]), self.both[1]


def two_tasks() -> tuple[Given, Given]:
    """Classes 0 and 1 with means (2, 0) and (0, 4), then class 2 with mean (-2, 0)."""
    first = torch.cat([CORNERS + torch.tensor([2.0, 0.0]), CORNERS + torch.tensor([0.0, 4.0])])
    labels = torch.tensor([0] * 4 + [1] * 4)
    return Given(first, labels), Given(CORNERS - torch.tensor([2.0, 0.0]), torch.full((4,), 2))


def test_the_term_adds_weighted_log_likelihoods() -> None:
    """By hand: 12 samples with scatter 12 in each axis and 9 degrees of freedom have the covariance 4 / 3."""
    term = DiscriminantTerm(2, weight=0.5)
    for task in two_tasks():
        term.end_task(task, lambda x: x)  # pyright: ignore[reportArgumentType]
    got = term.add(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0]]), lambda x: x)
    # m . x / (4 / 3) - |m|^2 / (8 / 3) for the means (2, 0), (0, 4) and (-2, 0)
    likelihoods = torch.tensor([[1.5 - 1.5, 3.0 - 6.0, -1.5 - 1.5]])
    torch.testing.assert_close(got, torch.tensor([[1.0, 2.0, 3.0]]) + 0.5 * likelihoods)


def test_the_aligned_head_has_the_rows_of_the_discriminant() -> None:
    """Differences of its logits are those of the log-likelihoods above, and the rows of all classes sum to 0."""
    head, alignment = TaskHeads(2, freeze_old=False), DiscriminantAlignment(2)
    for task in two_tasks():
        head.grow(len(task.classes), device=torch.device("cpu"))
        assert not alignment.stages(task, head, lambda x: x)  # pyright: ignore[reportArgumentType]
        alignment.end_task(task, head, lambda x: x)  # pyright: ignore[reportArgumentType]
    logits = head(torch.tensor([[1.0, 1.0]]))[0]
    torch.testing.assert_close(logits - logits[0], torch.tensor([0.0, -3.0, -3.0]))
    torch.testing.assert_close(head.weight.joined().sum(0), torch.zeros(2))
    assert all(p.requires_grad for p in head.parameters())


@pytest.fixture(scope="module")
def plain() -> Tensor:
    """Log-likelihoods of the test samples of the tiny stream under the discriminant of plain features."""
    stream = tiny_stream()
    return scores(learn(make("slda"), stream), inputs_of(stream))


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_train_as_without_the_term_and_score_with_it(name: str, plain: Tensor) -> None:
    stream, options = tiny_stream(), SYSTEMS[name]
    x = inputs_of(stream)
    alone = learn(make(name, **options), stream)
    both = learn(make(name, **options, frozen_term={"name": "discriminant", "weight": 0.25}), stream)
    state = both.learned_state()
    assert all(torch.equal(value, state[key]) for key, value in alone.learned_state().items())
    assert {key.split(".")[0] for key in set(state) - set(alone.learned_state())} == {"frozen_term"}
    torch.testing.assert_close(scores(both, x), scores(alone, x) + 0.25 * plain, atol=1e-4, rtol=1e-4)


def test_a_bare_term_has_a_weight_in_the_units_of_the_scores() -> None:
    """Cosines need a smaller one than logits."""
    weights = {name: make(name, frozen_term="discriminant").frozen_term.weight for name in SYSTEMS}
    assert weights["cl_lora"] == pytest.approx(1 / 70)
    with pytest.raises(InputError, match=r"method\.frozen_term\.weight has no effect with method\.frozen_term=none"):
        make("cl_lora", frozen_term={"name": "none", "weight": 1.0})
    with pytest.raises(InputError, match=r"method\.frozen_term\.weight: .*greater than 0"):
        make("cl_lora", frozen_term={"name": "discriminant", "weight": 0.0})


@pytest.mark.parametrize("name", ["layer_grouped", "lieprompt"])
def test_prompts_under_a_head_that_is_solved_for(name: str) -> None:
    """The head of every task is the discriminant of features under the task's prompts, whatever its training left."""
    stream = tiny_stream()
    method = make(name, **SYSTEMS[name] | {"align": "discriminant"})
    features = method._newest_features if name == "layer_grouped" else method._inferred_features
    learn(method, stream, upto=1)
    collected = [learn_task_of(method, stream, 0).extract_features(features)]
    task = learn_task_of(method, stream, 1)
    method.begin_task(task)
    next(iter(method.stages(task))).prepare()
    method.eval()
    collected.append(task.extract_features(features))
    assert [stage.name for stage in method.stages(task)] == ["fit"]
    with torch.no_grad():
        method.end_task(task)
    rows, labels = (torch.cat(parts).double() for parts in zip(*collected, strict=True))
    means = torch.stack([rows[labels == c].mean(0) for c in range(4)])
    inverse = method.alignment.discriminant.covariance().inverse()
    want = rows @ inverse @ means.T - 0.5 * (means @ inverse * means).sum(1)
    got = method.head(rows.float()).double()
    torch.testing.assert_close(got - got[:, :1], want - want[:, :1], atol=5e-3, rtol=5e-3)


def moved(method: Method, before: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that a task changed, but for new ones."""
    return {key for key, value in before.items() if not torch.equal(method.learned_state()[key], value)}


@pytest.mark.parametrize("align", ["gaussians", "none"])
def test_a_head_with_alignment_alone(align: str) -> None:
    """Plain features and their Gaussians; only the alignment changes rows of earlier tasks."""
    stream = tiny_stream()
    method = make("aligned", align=FEW["align"] if align == "gaussians" else "none")
    learn(method, stream, upto=1)
    before = {key: value.clone() for key, value in method.learned_state().items()}
    task = learn_task_of(method, stream, 1)
    learn_task(method, task, SETTINGS)
    rows = {"head.weight.0", "head.bias.0"} if align == "gaussians" else set()
    grown = {"task_sizes", *(key for key in before if key.startswith("alignment."))}
    assert moved(method, before) == rows | grown
    x = inputs_of(stream)
    with torch.no_grad():
        torch.testing.assert_close(scores(method, x), method.head(method.backbone(x)))
    if align == "gaussians":
        features, labels = task.extract_features(method.query)
        for c in task.classes:
            torch.testing.assert_close(method.alignment.gaussians.means[c], features[labels == c].mean(0))
