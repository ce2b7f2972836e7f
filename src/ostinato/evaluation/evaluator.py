"""Scoring a method on held-out samples, without letting it see labels, tasks or homogeneous batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.methods.base import Method, TaskInferring
from ostinato.streams import LabeledDataset
from ostinato.training.callbacks import Callback
from ostinato.training.loader import cut, given_batches, pack
from ostinato.training.loop import Settings
from ostinato.training.precision import compute
from ostinato.training.seeding import generator

DIVERGED = "Training diverged: learn again with a lower train.lr, or with train.clip."

SHOWN = 5
"""Names of classes that a sentence lists at most."""


@dataclass(frozen=True)
class Evaluation:
    """Counts of one evaluation, per group of samples (a group is a task's test split).

    Attributes:
        totals: samples per group.
        correct: right among all classes seen.
        task_incremental: right when only the classes of the sample's true task compete.
        task_id: samples whose task was inferred rightly; None where the method infers none.
        oracle_id: right among all classes seen, had every task been inferred rightly; None where not asked
            for or not defined.
        tested: samples per class seen.
        predicted: samples that each class seen was predicted for.
        images: samples scored.
        seconds: time spent.
        answers: the class predicted for each sample, group after group.
        right: whether that is right.
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

    @property
    def accuracy(self) -> float:
        """Fraction right over all samples."""
        return _share(self.correct, self.totals)

    @property
    def task_incremental_accuracy(self) -> float:
        """Fraction right within the true task's classes."""
        return _share(self.task_incremental, self.totals)

    @property
    def task_id_accuracy(self) -> float | None:
        """Fraction of samples whose task was inferred rightly."""
        return None if self.task_id is None else _share(self.task_id, self.totals)

    @property
    def oracle_id_accuracy(self) -> float | None:
        """Fraction right under the true task."""
        return None if self.oracle_id is None else _share(self.oracle_id, self.totals)

    def table(self) -> str:
        """One line per group, in percent."""
        lines = [f"all {len(self.totals)} tasks: {100 * self.accuracy:.1f} %"]
        lines += [
            f"  task {i}: {100 * c / n:.1f} % of {n}" if n else f"  task {i}: no samples"
            for i, (c, n) in enumerate(zip(self.correct, self.totals, strict=True))
        ]
        return "\n".join(lines)


def never_predicted(result: Evaluation, names: Sequence[str], label_groups: Tensor | None = None) -> str | None:
    """Name the classes with samples that were predicted for no sample at all.

    Args:
        result: of an evaluation.
        names: of the classes seen.
        label_groups: as in :func:`evaluate`; a class is predicted where one of its group is.

    Returns:
        A sentence without its full stop; None where every class with samples was predicted.
    """
    answer = range(len(names)) if label_groups is None else label_groups.tolist()
    given = {a for a, n in zip(answer, result.predicted, strict=True) if n}
    tested = [c for c, n in enumerate(result.tested) if n]
    missing = [repr(names[c]) for c in tested if answer[c] not in given]
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
    """One task id for a whole batch, all of one task: what several papers score, and no class-incremental test.

    A test batch then gives away that its images belong together. Results carry the name of the protocol.

    Attributes:
        size: images per batch, all from one task.
        shots: the evidence of this many first images is averaged; 0 takes the vote of all images instead.
    """

    size: int = 24
    shots: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.size < 1 or not 0 <= self.shots <= self.size:
            raise InputError(
                f"eval.shots must lie in [0, eval.batch_size = {self.size}], which is at least 1; got {self.shots}."
            )

    @property
    def name(self) -> str:
        """For example ``batch(24), 7 shots`` or ``batch(24), majority``."""
        return f"batch({self.size}), " + (f"{self.shots} shots" if self.shots else "majority")

    def choose(self, evidence: Tensor) -> Tensor:
        """The one task, a scalar, of a batch with evidence (B, T); ties go to the earliest task."""
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
    callback: Callback | None = None,
) -> Evaluation:
    """Score every sample of all groups, mixed and shuffled by a fixed seed unless a protocol says otherwise.

    Args:
        method: has seen the classes of all groups.
        groups: test samples, with their deterministic transform.
        settings: device, precision, batch size.
        oracle: also score under the true task, for methods that infer one.
        protocol: None scores every sample alone; otherwise batches are of one group each and share a task id.
        label_groups: for each label, the number of its group; labels of one group count as the same answer.
        names: of the classes seen, for messages.
        callback: told about every batch.

    Returns:
        Counts per group.

    Raises:
        InputError: if a label is outside the classes seen, there is nothing to score, a batch protocol is asked of a
            method that infers no task, or scores are not finite.
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
        raise InputError(f"eval.protocol: {method.name} infers no task, so that a batch has none to share.")
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
    # Per class and per task; looked at in the end, so that no batch waits for the device and all processes stop alike.
    predicted, bad_scores = (torch.zeros(method.n_seen, dtype=torch.int64, device=device) for _ in range(2))
    bad_evidence = torch.zeros(method.n_tasks, dtype=torch.int64, device=device)
    answers, right = (torch.zeros(total, dtype=torch.int64, device=device) for _ in range(2))  # each process its share
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
        for some in (scores,) if given is None else (scores, given):
            bad_scores += not_finite(some)
        best = scores.argmax(1)
        predicted.index_add_(0, best, torch.ones_like(best))
        hits = {
            "all": answer[best] == answer[y],
            "til": answer[scores.masked_fill(~own_classes[task], -torch.inf).argmax(1)] == answer[y],
        }
        answers[rows], right[rows] = best, hits["all"].long()
        if inferred is not None:
            hits["id"] = inferred == task
        if given is not None:
            hits["oracle"] = answer[given.argmax(1)] == answer[y]
        for name, hit in hits.items():
            counts[name].index_add_(0, group, hit.long())
        done += len(y)
        callback.on_batch(len(y))
    settings.processes.all_reduce([*counts.values(), predicted, bad_scores, bad_evidence, answers, right])
    check_scores(method, bad_scores, names)
    check_evidence(method, bad_evidence)
    if done < total:  # what other processes scored
        callback.on_batch(total - done)
    lists = {name: count.tolist() for name, count in counts.items()}
    return Evaluation(
        totals=[len(g) for g in groups],
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
    )


def batch_order(sizes: list[int], seed: int, size: int) -> list[list[int]]:
    """Batches of at most ``size`` positions from one group each, every group of ``sizes`` in seeded order."""
    draw = generator(seed, "evaluation")
    first, batches = 0, []
    for n in sizes:
        batches += cut((first + torch.randperm(n, generator=draw)).tolist(), size)
        first += n
    return batches


def _under_true_task(method: TaskInferring, x: Tensor, scores: Tensor, inferred: Tensor, task: Tensor) -> Tensor:
    """Scores under the true task; samples whose task was right keep theirs, which are the same."""
    wrong = (inferred != task).nonzero().flatten()
    if len(wrong):
        scores = scores.clone()
        scores[wrong] = method.scores_given_task(x[wrong], task[wrong])
    return scores


def check_shape(scores: Tensor, n: int, method: Method) -> None:
    """Make sure that there is a score per sample and class seen.

    Raises:
        InputError: naming the method.
    """
    if scores.shape != (n, method.n_seen):
        raise InputError(
            f"{method.name}.scores must be ({n}, {method.n_seen}): a score per class seen, got {tuple(scores.shape)}."
        )


def not_finite(values: Tensor) -> Tensor:
    """In how many rows of (B, C) each column (C,) holds no finite number."""
    return (~values.isfinite()).sum(0)


def check_scores(method: Method, bad: Tensor, names: Sequence[str] | None = None) -> None:
    """Refuse scores among which none is the best in earnest.

    Args:
        method: that gave them.
        bad: (n_seen,) of :func:`not_finite`.
        names: of the classes.

    Raises:
        InputError: naming the first class with scores that are not finite.
    """
    if found := bad.nonzero().flatten().tolist():
        name = repr(found[0] if names is None else names[found[0]])
        raise InputError(
            f"{method.name}: scores must be finite numbers, but those of class {name} are not. {DIVERGED} (A method of "
            "your own may give a class that cannot be a low score, but not -inf.)"
        )


def check_evidence(method: Method, bad: Tensor, rule: str | None = None) -> None:
    """Refuse evidence by which no task is the right one in earnest.

    Args:
        method: that gave it.
        bad: (T,) of :func:`not_finite`.
        rule: by which it was weighed; None for the method's own.

    Raises:
        InputError: naming the first task with evidence that is not finite.
    """
    if found := bad.nonzero().flatten().tolist():
        of = "" if rule is None else f" by rule {rule!r}"
        raise InputError(
            f"{method.name}: evidence{of} must be finite numbers, but that for task {found[0] + 1} is not. {DIVERGED}"
        )
