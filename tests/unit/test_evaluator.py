"""The evaluator against counts made by hand and by a plain loop, for methods whose scores are known."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from ostinato.errors import InputError
from ostinato.evaluation.evaluator import BatchProtocol, Evaluation, evaluate, never_predicted
from ostinato.methods.base import Method, TaskInferring
from ostinato.streams import EvalTransform, StreamOptions, TaskStream, arrays
from ostinato.training.callbacks import Callback
from ostinato.training.loop import Settings

SIDE = 4
SETTINGS = Settings(torch.device("cpu"), torch.float32, seed=1, eval_batch_size=8)
VIEW = EvalTransform(SIDE, "nearest")


def stream(labels, step=2):
    """Test samples whose red pixel value is their number; labels are classes 0, 1, ..."""
    n = max(labels) + 1
    pixels = np.zeros((len(labels), SIDE, SIDE, 3), dtype=np.uint8)
    pixels[..., 0] = np.arange(len(labels))[:, None, None]
    train = np.zeros((n, SIDE, SIDE, 3), dtype=np.uint8)
    source = arrays(train, np.arange(n), pixels, np.array(labels), class_names=[f"c{i}" for i in range(n)])
    return TaskStream(source, StreamOptions(step=step, validation=0))


def groups(stream):
    return [stream.test(i).with_transform(VIEW) for i in range(len(stream))]


class Table(Method):
    """Looks scores up by the number of the sample, and notes what it was shown."""

    def __init__(self, scores, sizes):
        super().__init__(nn.Identity())
        self.table = scores
        self.task_sizes = torch.tensor(sizes)
        self.name = "table"
        self.seen = []

    def scores(self, x):
        assert x.dtype == torch.uint8
        assert x.shape[1:] == (3, SIDE, SIDE)
        assert not self.training
        assert torch.is_inference_mode_enabled()
        rows = x[:, 0, 0, 0].long()
        self.seen.append(rows.tolist())
        return self.table[rows]


class Guessing(TaskInferring):
    """Infers the task that a table says; its scores depend on the task it is told."""

    def __init__(self, tasks, scores, sizes):
        super().__init__(nn.Identity())
        self.tasks, self.table = tasks, scores  # scores (samples, tasks, classes)
        self.task_sizes = torch.tensor(sizes)
        self.name = "guessing"
        self.rows = 0

    def task_scores(self, x):
        return nn.functional.one_hot(self.infer_task(x), self.n_tasks).float()

    def infer_task(self, x):
        return self.tasks[x[:, 0, 0, 0].long()]

    def scores_given_task(self, x, tasks):
        self.rows += len(x)
        return self.table[x[:, 0, 0, 0].long(), tasks]


# By hand: tasks {0, 1}, {2, 3}, {4}


HAND_LABELS = [0, 1, 1, 2, 2, 3, 4, 4]
HAND_SCORES = torch.tensor(
    [
        [9, 0, 1, 2, 3],  # class 0: right
        [8, 1, 0, 0, 9],  # class 1: wrong, and wrong among {0, 1}
        [0, 5, 0, 0, 9],  # class 1: wrong, right among {0, 1}
        [7, 0, 5, 4, 0],  # class 2: wrong, right among {2, 3}
        [0, 0, 5, 6, 0],  # class 2: wrong, wrong among {2, 3}
        [0, 0, 5, 6, 0],  # class 3: right
        [9, 0, 0, 0, 1],  # class 4: wrong, right among {4}
        [-3, -4, -5, -6, -1],  # class 4: right, all scores negative
    ],
    dtype=torch.float32,
)


def test_counts_by_hand():
    result = evaluate(Table(HAND_SCORES, [2, 2, 1]), groups(stream(HAND_LABELS)), SETTINGS)
    assert result.totals == [3, 3, 2]
    assert result.correct == [1, 1, 1]
    assert result.task_incremental == [2, 2, 2]
    assert result.task_id is None
    assert result.oracle_id is None
    assert result.task_id_accuracy is None
    assert result.oracle_id_accuracy is None
    assert result.images == 8
    assert result.seconds > 0
    assert result.accuracy == pytest.approx(3 / 8)
    assert result.task_incremental_accuracy == pytest.approx(6 / 8)


def test_predictions_are_counted_per_class():
    result = evaluate(Table(HAND_SCORES, [2, 2, 1]), groups(stream(HAND_LABELS)), SETTINGS)
    assert result.tested == [1, 2, 2, 1, 2]
    assert result.predicted == [3, 0, 0, 2, 3]
    part = evaluate(Table(HAND_SCORES, [2, 2, 1]), groups(stream(HAND_LABELS))[:1], SETTINGS)
    assert part.tested == [1, 2, 0, 0, 0]
    assert part.predicted == [1, 0, 0, 0, 2], "also for classes without samples"


def test_groups_need_not_be_tasks():
    """A group may mix tasks, as the classes of an earlier run do; the true task is that of the label."""
    parts = groups(stream(HAND_LABELS))
    from ostinato.streams import LabeledDataset

    mixed = [LabeledDataset.concat([parts[0], parts[2]]), parts[1]]
    result = evaluate(Table(HAND_SCORES, [2, 2, 1]), mixed, SETTINGS)
    assert (result.totals, result.correct, result.task_incremental) == ([5, 3], [2, 1], [4, 2])


def test_groups_without_samples_count_nothing():
    parts = groups(stream(HAND_LABELS))
    result = evaluate(Table(HAND_SCORES, [2, 2, 1]), [parts[0], parts[1].subset([]), parts[2]], SETTINGS)
    assert (result.totals, result.correct) == ([3, 0, 2], [1, 0, 1])
    assert "task 2: no samples" in result.table()


def test_seen_classes_beyond_the_groups_compete():
    labels = [0, 1]
    scores = torch.tensor([[1.0, 0, 5], [0, 1, 0]])
    result = evaluate(Table(scores, [2, 1]), groups(stream(labels)), SETTINGS)
    assert (result.correct, result.task_incremental) == ([1], [2])


# Random tables against a loop


def random_case(seed, n=60, sizes=(2, 3, 1, 2)):
    rng = np.random.default_rng(seed)
    classes = sum(sizes)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return rng, labels, list(sizes), classes


def cut(labels, sizes):
    names = [f"c{i}" for i in range(sum(sizes))]
    ends = np.cumsum([0, *sizes])
    tasks = [names[a:b] for a, b in pairwise(ends)]
    whole = stream(labels.tolist())
    return TaskStream(whole.source, StreamOptions(tasks=tasks, validation=0))


def masked(row, classes):
    return max(classes, key=lambda c: row[c])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_counts_equal_a_plain_loop(batch_size):
    rng, labels, sizes, classes = random_case(0)
    scores = rng.normal(size=(60, classes)).astype(np.float32)
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    totals, right, til = ([0] * len(sizes) for _ in range(3))
    for i, y in enumerate(labels):
        t = task_of[y]
        totals[t] += 1
        right[t] += masked(scores[i], range(classes)) == y
        til[t] += masked(scores[i], np.flatnonzero(task_of == t)) == y
    method = Table(torch.from_numpy(scores), sizes)
    settings = Settings(torch.device("cpu"), torch.float32, seed=batch_size, eval_batch_size=batch_size)
    result = evaluate(method, groups(cut(labels, sizes)), settings)
    assert (result.totals, result.correct, result.task_incremental) == (totals, right, til)
    assert 0 < sum(right) < sum(til)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_task_and_oracle_counts_equal_a_plain_loop(batch_size):
    rng, labels, sizes, classes = random_case(1)
    scores = rng.normal(size=(60, len(sizes), classes)).astype(np.float32)
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    guess = np.where(rng.random(60) < 0.5, task_of[labels], rng.integers(0, len(sizes), 60))
    counts = {name: [0] * len(sizes) for name in ("right", "til", "id", "oracle")}
    for i, y in enumerate(labels):
        t = task_of[y]
        counts["right"][t] += scores[i, guess[i]].argmax() == y
        counts["til"][t] += masked(scores[i, guess[i]], np.flatnonzero(task_of == t)) == y
        counts["id"][t] += guess[i] == t
        counts["oracle"][t] += scores[i, t].argmax() == y
    method = Guessing(torch.from_numpy(guess), torch.from_numpy(scores), sizes)
    settings = Settings(torch.device("cpu"), torch.float32, eval_batch_size=batch_size)
    result = evaluate(method, groups(cut(labels, sizes)), settings, oracle=True)
    assert result.correct == counts["right"]
    assert result.task_incremental == counts["til"]
    assert result.task_id == counts["id"]
    assert result.oracle_id == counts["oracle"]
    assert counts["oracle"] != counts["right"]
    assert result.task_id_accuracy == pytest.approx((guess == task_of[labels]).mean())
    assert result.oracle_id_accuracy == pytest.approx(sum(counts["oracle"]) / 60)
    assert method.rows == 60 + (guess != task_of[labels]).sum(), "only wrong guesses are scored again"


def test_the_oracle_is_scored_on_request_only():
    rng, labels, sizes, classes = random_case(2)
    scores = torch.from_numpy(rng.normal(size=(60, len(sizes), classes)).astype(np.float32))
    method = Guessing(torch.zeros(60, dtype=torch.int64), scores, sizes)
    result = evaluate(method, groups(cut(labels, sizes)), SETTINGS)
    assert result.oracle_id is None
    assert result.task_id == [result.totals[0], 0, 0, 0]
    assert method.rows == 60


# What the method is shown


def test_every_sample_is_shown_once_in_mixed_batches():
    _, labels, sizes, classes = random_case(3)
    method = Table(torch.zeros(60, classes), sizes)
    evaluate(method, groups(cut(labels, sizes)), SETTINGS)
    task_of = np.repeat(np.arange(len(sizes)), sizes)
    assert sorted(i for batch in method.seen for i in batch) == list(range(60))
    assert [len(b) for b in method.seen] == [8] * 7 + [4]
    assert all(len({task_of[labels[i]] for i in batch}) > 1 for batch in method.seen)


def test_the_order_is_fixed_by_the_seed():
    _, labels, sizes, classes = random_case(3)
    orders = []
    for seed in (1, 1, 2):
        method = Table(torch.zeros(60, classes), sizes)
        evaluate(method, groups(cut(labels, sizes)), Settings(torch.device("cpu"), torch.float32, seed=seed))
        orders.append(method.seen)
    assert orders[0] == orders[1] != orders[2]


def test_evaluation_leaves_global_generators_and_the_method_alone():
    method = Table(HAND_SCORES.clone(), [2, 2, 1])
    state = torch.get_rng_state()
    evaluate(method, groups(stream(HAND_LABELS)), SETTINGS)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(method.table, HAND_SCORES)


class Batches(Callback):
    """Notes the sizes of batches."""

    def __init__(self):
        self.sizes = []

    def on_batch(self, n):
        self.sizes.append(n)


def test_progress_is_told_after_each_batch():
    batches = Batches()
    settings = Settings(torch.device("cpu"), torch.float32, eval_batch_size=3)
    evaluate(Table(HAND_SCORES, [2, 2, 1]), groups(stream(HAND_LABELS)), settings, callback=batches)
    assert batches.sizes == [3, 3, 2]


# Refusals


@pytest.mark.parametrize("bad", [torch.zeros(8, 4), torch.zeros(8, 6), torch.zeros(8), torch.zeros(8, 5, 1)])
def test_scores_of_another_shape_are_refused(bad):
    with pytest.raises(InputError, match=r"table.scores must be \(8, 5\): a score per class seen, got"):
        evaluate(Table(bad, [2, 2, 1]), groups(stream(HAND_LABELS)), SETTINGS)


def test_nothing_to_score_is_refused():
    method = Table(HAND_SCORES, [2, 2, 1])
    for nothing in ([], [groups(stream(HAND_LABELS))[0].subset([])]):
        with pytest.raises(InputError, match="there are no samples to score"):
            evaluate(method, nothing, SETTINGS)


def test_labels_beyond_the_classes_seen_are_refused():
    parts = groups(stream(HAND_LABELS))
    with pytest.raises(InputError, match="label 4 is outside the 4 classes learned so far"):
        evaluate(Table(HAND_SCORES[:, :4], [2, 2]), parts, SETTINGS)
    assert evaluate(Table(HAND_SCORES[:, :4], [2, 2]), parts[:2], SETTINGS).images == 6


BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.parametrize("bad", BAD)
def test_scores_that_are_not_finite_are_refused(bad):
    scores = HAND_SCORES.clone()
    scores[6, 3] = scores[2, 4] = bad
    method = Table(scores, [2, 2, 1])
    with pytest.raises(InputError, match="table: scores must be finite numbers, but those of class 3 are not"):
        evaluate(method, groups(stream(HAND_LABELS)), replace(SETTINGS, eval_batch_size=1))
    with pytest.raises(InputError, match=r"those of class 'd' are not. Training diverged: learn again with a lower tr"):
        evaluate(method, groups(stream(HAND_LABELS)), SETTINGS, names=["a", "b", "c", "d", "e"])


@pytest.mark.parametrize("bad", BAD)
def test_scores_under_the_true_task_are_finite_as_well(bad):
    scores = torch.zeros(8, 3, 5)
    scores[3, 1, 2] = bad
    method = Guessing(torch.zeros(8, dtype=torch.int64), scores, [2, 2, 1])
    assert evaluate(method, groups(stream(HAND_LABELS)), SETTINGS).images == 8
    with pytest.raises(InputError, match="those of class 2 are not"):
        evaluate(method, groups(stream(HAND_LABELS)), SETTINGS, oracle=True)


@pytest.mark.parametrize("bad", BAD)
def test_evidence_that_is_not_finite_is_refused(bad):
    class Unsure(Guessing):
        def task_scores(self, x):
            return super().task_scores(x) + torch.tensor([0, bad, 0])

    method = Unsure(torch.zeros(8, dtype=torch.int64), torch.zeros(8, 3, 5), [2, 2, 1])
    with pytest.raises(InputError, match="guessing: evidence must be finite numbers, but that for task 2 is not"):
        evaluate(method, groups(stream(HAND_LABELS)), SETTINGS, protocol=BatchProtocol(4))


# The result


def test_accuracies_weigh_samples_and_the_table_lists_groups():
    result = Evaluation([10, 30, 0], [9, 15, 0], [10, 30, 0], [5, 15, 0], None, [], [], 40, 1.0, [], [])
    assert result.accuracy == pytest.approx(0.6)
    assert result.task_incremental_accuracy == 1
    assert result.task_id_accuracy == pytest.approx(0.5)
    assert result.oracle_id_accuracy is None
    assert result.table().splitlines() == [
        "all 3 tasks: 60.0 %",
        "  task 1: 90.0 % of 10",
        "  task 2: 50.0 % of 30",
        "  task 3: no samples",
    ]


def counted(tested, predicted):
    return Evaluation([sum(tested)], [0], [0], None, None, tested, predicted, sum(tested), 1.0, [], [])


def test_classes_that_are_never_predicted_are_named():
    names = list("abcdefgh")
    assert never_predicted(counted([2] * 8, [2] * 8), names) is None
    assert never_predicted(counted([2, 2], [4, 0]), ["a", "x y"]) == (
        "1 of 2 classes with test samples was never predicted: 'x y'"
    )
    assert never_predicted(counted([3, 0, 3, 3, 0, 3, 0, 0], [0, 9, 3, 0, 0, 0, 0, 0]), names) == (
        "3 of 4 classes with test samples were never predicted: 'a', 'd', 'f'"
    ), "classes without samples are left out"
    assert never_predicted(counted([1] * 8, [8, *[0] * 7]), names) == (
        "7 of 8 classes with test samples were never predicted: 'b', 'c', 'd', 'e', 'f' and 2 more"
    )


def test_a_class_is_predicted_where_one_that_means_the_same_is():
    found = counted([2, 2, 2], [6, 0, 0])
    assert never_predicted(found, ["a", "b", "c"], torch.tensor([0, 1, 0])) == (
        "1 of 3 classes with test samples was never predicted: 'b'"
    )
