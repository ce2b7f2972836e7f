"""Protocols that share one task id within a batch, beside the answer of each sample alone."""

from __future__ import annotations

import pytest
import torch
from tests.unit.test_evaluator import groups, stream
from torch import nn

from ostinato.errors import InputError
from ostinato.evaluation.evaluator import BatchProtocol, batch_order, evaluate
from ostinato.evaluation.protocols import ORACLE, compare_protocols
from ostinato.methods.base import Method, TaskInferring
from ostinato.training.loop import Settings

SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=4, eval_batch_size=5)
LABELS = [i % 6 for i in range(66)]


class Noisy(TaskInferring):
    """Evidence and scores by the number of the sample; the right task helps, the wrong one hurts."""

    def __init__(self, noise=1.5):
        super().__init__(nn.Identity())
        self.name = "noisy"
        self.task_sizes = torch.tensor([2, 2, 2])
        rng = torch.Generator().manual_seed(0)
        self.evidence = {}
        s = stream(LABELS)
        first = groups(s)
        self.labels = torch.zeros(66, dtype=torch.long)
        for group in first:
            for j in range(len(group)):
                x, y = group[j]
                self.labels[int(x[0, 0, 0])] = y
        own = torch.nn.functional.one_hot(self.labels // 2, 3).float()
        for rule in ("near", "far"):
            self.evidence[rule] = own + noise * torch.randn(66, 3, generator=rng)
        classes = torch.nn.functional.one_hot(self.labels, 6).float()[:, None]
        self.table = classes * own[..., None] + 0.6 * torch.rand(66, 3, 6, generator=rng)
        self.scored = 0

    def rules(self):
        return {rule: lambda x, r=rule: self.evidence[r][x[:, 0, 0, 0].long()] for rule in self.evidence}

    def task_scores(self, x):
        return self.rules()["near"](x)

    def scores_given_task(self, x, tasks):
        self.scored += len(x)
        return self.table[x[:, 0, 0, 0].long(), tasks]


def compared(method=None, **options):
    return {
        (r.rule, r.protocol): r
        for r in compare_protocols(method or Noisy(), groups(stream(LABELS)), SETTINGS, **options)
    }


def test_the_sample_protocol_is_the_evaluators_own():
    want = evaluate(Noisy(), groups(stream(LABELS)), SETTINGS, oracle=True)
    rows = compared()
    assert rows["near", "sample"].accuracy == pytest.approx(want.accuracy)
    assert rows["near", "sample"].task_id_accuracy == pytest.approx(want.task_id_accuracy)
    assert rows["-", ORACLE].accuracy == pytest.approx(want.oracle_id_accuracy)
    assert rows["-", ORACLE].task_id_accuracy == 1


@pytest.mark.parametrize("protocol", [BatchProtocol(6), BatchProtocol(6, 3), BatchProtocol(6, 6)])
def test_batch_protocols_are_the_evaluators_own(protocol):
    want = evaluate(Noisy(), groups(stream(LABELS)), SETTINGS, protocol=protocol)
    row = compared(size=6, shots=(3,))["near", protocol.name]
    assert row.accuracy == pytest.approx(want.accuracy)
    assert row.task_id_accuracy == pytest.approx(want.task_id_accuracy)


def test_classes_that_mean_the_same_count_for_each_other():
    found = compared(label_groups=torch.zeros(6, dtype=torch.long))
    assert all(row.accuracy == 1 for row in found.values())
    label_groups = torch.tensor([0, 1, 0, 1, 0, 1])
    one = compared(rules=["near"], label_groups=label_groups)["near", "sample"]
    own = evaluate(Noisy(), groups(stream(LABELS)), SETTINGS, label_groups=label_groups)
    assert one.accuracy == pytest.approx(own.accuracy)
    assert one.accuracy > compared(rules=["near"])["near", "sample"].accuracy


def test_batches_of_one_task_give_the_task_away():
    rows = compared(Noisy(noise=1.0), size=11, shots=(5,))
    alone, voted, whole = (rows["near", p] for p in ("sample", "batch(11), majority", "batch(11), 11 shots"))
    assert alone.task_id_accuracy < 0.75 < voted.task_id_accuracy
    assert whole.task_id_accuracy > 0.9
    assert whole.accuracy > alone.accuracy + 0.1


def test_a_batch_protocol_by_hand():
    evidence = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 0.9], [1.0, 0.0, 0.5]])
    assert BatchProtocol(3).choose(evidence) == 0, "two of three votes"
    assert BatchProtocol(3, 1).choose(evidence) == 1, "the first image alone"
    assert BatchProtocol(3, 3).choose(evidence) == 1, "the mean of all"
    assert BatchProtocol(24, 7).name == "batch(24), 7 shots"
    assert BatchProtocol(24).name == "batch(24), majority"


def test_batches_hold_one_group_and_every_sample_once():
    batches = batch_order([7, 0, 5], 3, 4)
    assert sorted(i for b in batches for i in b) == list(range(12))
    assert [len(b) for b in batches] == [4, 3, 4, 1]
    assert all(max(b) < 7 or min(b) >= 7 for b in batches)
    assert batches == batch_order([7, 0, 5], 3, 4)
    assert batches != batch_order([7, 0, 5], 4, 4)


def test_an_image_is_scored_once_per_task_that_a_protocol_gives_it():
    method = Noisy()
    compare_protocols(method, groups(stream(LABELS)), SETTINGS, size=6)
    assert 66 <= method.scored <= 3 * 66


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_evidence_and_scores_must_be_finite(bad):
    method = Noisy()
    method.evidence["far"][40, 2] = bad
    with pytest.raises(
        InputError, match="noisy: evidence by rule 'far' must be finite numbers, but that for task 3 is"
    ):
        compared(method)
    assert compared(method, rules=["near"])
    method.table[40, :, 5] = bad
    with pytest.raises(InputError, match="noisy: scores must be finite numbers, but those of class 5 are not"):
        compared(method, rules=["near"])


def test_scores_of_another_shape_are_refused():
    method = Noisy()
    method.table = method.table[..., :5]
    with pytest.raises(InputError, match=r"noisy.scores must be \(5, 6\): a score per class seen, got \(5, 5\)"):
        compared(method)


def test_rules_can_be_chosen_and_wrong_ones_are_named():
    assert {rule for rule, _ in compared(rules=["far"])} == {"far", "-"}
    with pytest.raises(InputError, match="no rule 'keys'"):
        compared(rules=["keys"])


def test_methods_without_tasks_have_no_batch_protocol():
    class Plain(Method):
        def scores(self, x):
            return torch.zeros(len(x), 6)

    method = Plain(nn.Identity())
    method.name, method.task_sizes = "plain", torch.tensor([2, 2, 2])
    with pytest.raises(InputError, match="need a method that infers tasks; plain does not"):
        compare_protocols(method, groups(stream(LABELS)), SETTINGS)
    with pytest.raises(InputError, match="needs a method that infers tasks; plain does not"):
        evaluate(method, groups(stream(LABELS)), SETTINGS, protocol=BatchProtocol())


@pytest.mark.parametrize(("size", "shots"), [(0, 0), (4, 5), (4, -1)])
def test_impossible_protocols(size, shots):
    with pytest.raises(InputError, match=r"eval\.shots"):
        BatchProtocol(size, shots)
