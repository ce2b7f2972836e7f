"""Evaluation of a method on test samples, without labels, task ids or batches of one task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.evaluation.calibration import BINS, answer_probabilities, bin_sums, calibration_error
from ostinato.methods.base import Method, TaskInferring
from ostinato.streams import LabeledDataset
from ostinato.training.callbacks import Callback
from ostinato.training.loader import cut, given_batches, pack
from ostinato.training.loop import Settings
from ostinato.training.precision import compute
from ostinato.training.seeding import generator

DIVERGED = "Training diverged: learn again with a lower train.lr, or with train.clip."

SHOWN = 5
"""Largest number of class names in a message."""


@dataclass(frozen=True)
class Evaluation:
    """Counts of an evaluation, per group of samples (a task's test split).

    Attributes:
        totals: samples per group.
        correct: correct predictions among all classes seen.
        task_incremental: correct predictions among the classes of the true task.
        task_id: correctly inferred tasks; None if the method infers none.
        oracle_id: correct predictions among all classes seen under the true task; None if not requested or undefined.
        tested: samples per class seen.
        predicted: predictions per class seen.
        images: samples scored.
        seconds: time spent.
        answers: predicted class of each sample, group after group.
        right: whether each answer is right.
        calibration_error: of the probabilities, see :func:`ostinato.evaluation.calibration.calibration_error`; None
            without a temperature.
        uncalibrated_error: the same of the softmax of the scores as they are.
        probabilities: probability of each sample's answer; without a temperature, of the softmax of the scores.
        bins: sums of :func:`ostinato.evaluation.calibration.bin_sums`, of the softmax of the scores, then of the
            probabilities if there is a temperature.
    """

    totals: list[int]
    correct: list[int]
    task_incremental: list[int]
    task_id: list[int] | None
    oracle_id: list[int] | None
    tested: list[int]
    predicted: list[int]
    images: int
    seconds: float
    answers: list[int]
    right: list[bool]
    calibration_error: float | None = None
    uncalibrated_error: float | None = None
    probabilities: Sequence[float] = ()
    bins: Sequence[Sequence[Sequence[float]]] = ()

    @property
    def accuracy(self) -> float:
        """Fraction of correct predictions."""
        return _share(self.correct, self.totals)

    @property
    def task_incremental_accuracy(self) -> float:
        """Fraction of correct predictions among the classes of the true task."""
        return _share(self.task_incremental, self.totals)

    @property
    def task_id_accuracy(self) -> float | None:
        """Fraction of correctly inferred tasks."""
        return None if self.task_id is None else _share(self.task_id, self.totals)

    @property
    def oracle_id_accuracy(self) -> float | None:
        """Fraction of correct predictions under the true task."""
        return None if self.oracle_id is None else _share(self.oracle_id, self.totals)

    def table(self) -> str:
        """One line per group, in percent."""
        lines = [f"all {len(self.totals)} tasks: {100 * self.accuracy:.1f} %"]
        lines += [
            f"  task {i}: {100 * c / n:.1f} % of {n}" if n else f"  task {i}: no samples"
            for i, (c, n) in enumerate(zip(self.correct, self.totals, strict=True), 1)
        ]
        return "\n".join(lines)


def never_predicted(result: Evaluation, names: Sequence[str], label_groups: Tensor | None = None) -> str | None:
    """Name the tested classes without any prediction.

    Args:
        result: of an evaluation.
        names: of the classes seen.
        label_groups: as in :func:`evaluate`; a prediction counts for all classes of its group.

    Returns:
        A sentence without its full stop; None if every tested class was predicted.
    """
    answer = range(len(names)) if label_groups is None else label_groups.tolist()
    predicted = {a for a, n in zip(answer, result.predicted, strict=True) if n}
    tested = [c for c, n in enumerate(result.tested) if n]
    missing = [repr(names[c]) for c in tested if answer[c] not in predicted]
    if not missing:
        return None
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return (
        f"{len(missing)} of {len(tested)} classes with test samples {'was' if len(missing) == 1 else 'were'} never "
        f"predicted: {', '.join(missing[:SHOWN])}{more}"
    )


def _share(correct: Sequence[int], totals: Sequence[int]) -> float:
    return sum(correct) / max(sum(totals), 1)


@dataclass(frozen=True)
class BatchProtocol:
    """Protocol of several papers: batches of one task, with one inferred task id per batch.

    It is no class-incremental test, since a batch reveals that its images share a task. Results record its name.

    Attributes:
        size: images per batch.
        shots: number of first images whose mean evidence decides; 0 takes the majority vote of all images.
    """

    size: int = 24
    shots: int = 0

    def __post_init__(self) -> None:
        """Raise InputError for values out of range."""
        if self.size < 1 or not 0 <= self.shots <= self.size:
            raise InputError(
                f"eval.shots must lie in [0, eval.batch = {self.size}], which is at least 1; got {self.shots}."
            )

    @classmethod
    def of(cls, protocol: str, size: int | None, shots: int | None) -> BatchProtocol | None:
        """Read the options ``eval.protocol``, ``eval.batch`` and ``eval.shots``; None scores every sample alone.

        Raises:
            InputError: if ``size`` or ``shots`` has no effect, or a value is out of range.
        """
        if protocol == "batch":
            return cls(cls.size if size is None else size, cls.shots if shots is None else shots)
        if size is not None or shots is not None:
            raise InputError("eval.batch and eval.shots need eval.protocol=batch; add it or leave them out.")
        return None

    @property
    def name(self) -> str:
        """For example ``batch(24), 7 shots`` or ``batch(24), majority``."""
        return f"batch({self.size}), " + (f"{self.shots} shots" if self.shots else "majority")

    def choose(self, evidence: Tensor) -> Tensor:
        """Task, a scalar, of a batch with evidence (B, T); ties go to the earliest task."""
        if self.shots:
            return evidence[: self.shots].mean(0).argmax()
        return torch.bincount(evidence.argmax(1), minlength=evidence.shape[1]).argmax()


@torch.inference_mode()
def evaluate(
    method: Method,
    groups: Sequence[LabeledDataset],
    settings: Settings,
    *,
    oracle: bool = False,
    protocol: BatchProtocol | None = None,
    label_groups: Tensor | None = None,
    names: Sequence[str] | None = None,
    temperature: float | None = None,
    callback: Callback | None = None,
) -> Evaluation:
    """Score all groups, with samples mixed and shuffled by a fixed seed unless there is a protocol.

    Args:
        method: has seen the classes of all groups.
        groups: test samples under the test transform.
        settings: device, precision, batch size.
        oracle: also score under the true task, for methods that infer one.
        protocol: None scores every sample alone; otherwise each batch is of one group and shares a task id.
        label_groups: group number of each label; labels of one group are the same answer.
        names: of the classes seen, for messages.
        temperature: of the probabilities; None for none.
        callback: called after every batch.

    Raises:
        InputError: if there are no samples, a label is outside the classes seen, a protocol is given for a method
            that infers no task, or scores are not finite.
    """
    callback = callback or Callback()
    began = time.perf_counter()
    samples = LabeledDataset.concat(list(groups)) if groups else None
    if samples is None or len(samples) == 0:
        raise InputError("evaluate: there are no samples to score; give a test split or a validation fraction.")
    if int(samples.labels.max()) >= method.n_seen:
        raise InputError(
            f"evaluate: label {int(samples.labels.max())} is outside the {method.n_seen} classes learned so far."
        )
    device, n_groups = settings.device, len(groups)
    group_of = torch.repeat_interleave(torch.arange(n_groups), torch.tensor([len(g) for g in groups])).to(device)
    task_of_class = method.task_of_class
    own_classes = task_of_class[None] == torch.arange(method.n_tasks, device=device)[:, None]  # (T, C)
    inferring = method if isinstance(method, TaskInferring) else None
    if protocol is not None and inferring is None:
        raise InputError(f"eval.protocol=batch needs a method that infers tasks; {method.name} does not.")
    sizes = [len(g) for g in groups]
    if protocol is None:
        mixed = torch.randperm(sum(sizes), generator=generator(settings.seed, "evaluation")).tolist()
        batches = pack(samples, mixed, settings.eval_batch_size, keep_order=False)
    else:
        batches = batch_order(sizes, settings.seed, protocol.size)
    total = sum(sizes)
    answer = (torch.arange(method.n_seen) if label_groups is None else label_groups).to(device)
    batches = settings.processes.shard(batches)
    order = [i for batch in batches for i in batch]
    counts = {name: torch.zeros(n_groups, dtype=torch.int64, device=device) for name in ("all", "til", "id", "oracle")}
    # Per class and per task; read at the end, so that no batch waits for the device and all processes stop together.
    predicted, bad_scores = (torch.zeros(method.n_seen, dtype=torch.int64, device=device) for _ in range(2))
    bad_evidence = torch.zeros(method.n_tasks, dtype=torch.int64, device=device)
    answers, right = (torch.zeros(total, dtype=torch.int64, device=device) for _ in range(2))  # each process its share
    probabilities = torch.zeros(total, dtype=torch.float64, device=device)
    temperatures = [1.0] if temperature is None else [1.0, temperature]
    bins = torch.zeros(len(temperatures), BINS, 3, dtype=torch.float64, device=device)
    method.eval()
    done = 0
    for x, y in given_batches(samples, batches, device=device, workers=settings.workers):
        rows = torch.tensor(order[done : done + len(y)], device=device)
        group, task = group_of[rows], task_of_class[y]
        with compute(method, device, settings.dtype):
            given = inferred = None
            if inferring is None:
                scores = method.scores(x)
            else:
                if protocol is None:
                    inferred = inferring.infer_task(x)
                else:
                    evidence = inferring.task_scores(x)
                    bad_evidence += not_finite(evidence)
                    inferred = protocol.choose(evidence).expand(len(x))
                scores = inferring.scores_given_task(x, inferred)
                if oracle:
                    given = _under_true_task(inferring, x, scores, inferred, task)
        check_shape(scores, len(y), method)
        for values in (scores,) if given is None else (scores, given):
            bad_scores += not_finite(values)
        best = scores.argmax(1)
        predicted.index_add_(0, best, torch.ones_like(best))
        hits = {
            "all": answer[best] == answer[y],
            "til": answer[scores.masked_fill(~own_classes[task], -torch.inf).argmax(1)] == answer[y],
        }
        answers[rows], right[rows] = best, hits["all"].long()
        for sums, t in zip(bins, temperatures, strict=True):
            of_answers = answer_probabilities(scores, t, answer)
            sums += bin_sums(of_answers, hits["all"])
            probabilities[rows] = of_answers  # the calibrated ones, which come last
        if inferred is not None:
            hits["id"] = inferred == task
        if given is not None:
            hits["oracle"] = answer[given.argmax(1)] == answer[y]
        for name, hit in hits.items():
            counts[name].index_add_(0, group, hit.long())
        done += len(y)
        callback.on_batch(len(y))
    per_sample = [answers, right, probabilities]
    settings.processes.all_reduce([*counts.values(), predicted, bad_scores, bad_evidence, *per_sample, bins])
    check_scores(method, bad_scores, names)
    check_evidence(method, bad_evidence)
    if done < total:  # samples of other processes
        callback.on_batch(total - done)
    lists = {name: count.tolist() for name, count in counts.items()}
    return Evaluation(
        totals=sizes,
        correct=lists["all"],
        task_incremental=lists["til"],
        task_id=lists["id"] if inferring else None,
        oracle_id=lists["oracle"] if inferring and oracle else None,
        tested=torch.bincount(samples.labels, minlength=method.n_seen).tolist(),
        predicted=predicted.tolist(),
        images=total,
        seconds=time.perf_counter() - began,
        answers=answers.tolist(),
        right=right.bool().tolist(),
        calibration_error=None if temperature is None else calibration_error(bins[1]),
        uncalibrated_error=calibration_error(bins[0]),
        probabilities=probabilities.tolist(),
        bins=bins.tolist(),
    )


def batch_order(sizes: list[int], seed: int, size: int) -> list[list[int]]:
    """Batches of at most ``size`` positions of one group; groups of ``sizes`` samples are shuffled by the seed."""
    draw = generator(seed, "evaluation")
    first, batches = 0, []
    for n in sizes:
        batches += cut((first + torch.randperm(n, generator=draw)).tolist(), size)
        first += n
    return batches


def _under_true_task(method: TaskInferring, x: Tensor, scores: Tensor, inferred: Tensor, task: Tensor) -> Tensor:
    """Scores under the true task; correctly inferred samples keep their scores."""
    wrong = (inferred != task).nonzero().flatten()
    if len(wrong):
        scores = scores.clone()
        scores[wrong] = method.scores_given_task(x[wrong], task[wrong])
    return scores


def check_shape(scores: Tensor, n: int, method: Method) -> None:
    """Raise InputError unless there is a score per sample and class seen."""
    if scores.shape != (n, method.n_seen):
        raise InputError(
            f"{method.name}.scores must be ({n}, {method.n_seen}): a score per class seen, got {tuple(scores.shape)}."
        )


def not_finite(values: Tensor) -> Tensor:
    """Number (C,) of values that are not finite in each column of (B, C)."""
    return (~values.isfinite()).sum(0)


def check_scores(method: Method, bad: Tensor, names: Sequence[str] | None = None) -> None:
    """Raise InputError for the first class with scores that are not finite, by ``bad`` of :func:`not_finite`."""
    if found := bad.nonzero().flatten().tolist():
        name = repr(found[0] if names is None else names[found[0]])
        raise InputError(
            f"{method.name}: scores must be finite numbers, but those of class {name} are not. {DIVERGED} (To exclude "
            "a class, a method gives it a low score, not -inf.)"
        )


def check_evidence(method: Method, bad: Tensor, rule: str | None = None) -> None:
    """Raise InputError for the first task with evidence that is not finite, by ``bad`` of :func:`not_finite`."""
    if found := bad.nonzero().flatten().tolist():
        of = "" if rule is None else f" by rule {rule!r}"
        raise InputError(
            f"{method.name}: evidence{of} must be finite numbers, but that for task {found[0] + 1} is not. {DIVERGED}"
        )
