"""Scoring a method on held-out samples, without letting it see labels, tasks or homogeneous batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.engine.loader import fixed_batches
from ostinato.engine.precision import compute
from ostinato.engine.seeding import generator
from ostinato.engine.train import Settings
from ostinato.errors import InputError
from ostinato.methods.base import Method, TaskInferring
from ostinato.streams import Examples


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
        images: samples scored.
        seconds: time spent.
    """

    totals: list[int]
    correct: list[int]
    task_incremental: list[int]
    task_id: list[int] | None
    oracle_id: list[int] | None
    images: int
    seconds: float

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


def _share(correct: Sequence[int], totals: Sequence[int]) -> float:
    return sum(correct) / max(sum(totals), 1)


@torch.inference_mode()
def evaluate(
    method: Method,
    groups: Sequence[Examples],
    settings: Settings,
    *,
    oracle: bool = False,
    tick: Callable[[int], None] | None = None,
) -> Evaluation:
    """Score every sample of all groups, mixed and shuffled by a fixed seed.

    Args:
        method: has seen the classes of all groups.
        groups: test samples, with their deterministic view.
        settings: device, precision, batch size.
        oracle: also score under the true task, for methods that infer one.
        tick: called with the number of samples after each batch.

    Returns:
        Counts per group.

    Raises:
        InputError: if a label is outside the classes seen, or there is nothing to score.
    """
    began = time.perf_counter()
    samples = Examples.concat(list(groups)) if groups else None
    if samples is None or len(samples) == 0:
        raise InputError("evaluate: there are no samples to score; give a test split or a validation fraction.")
    if int(samples.labels.max()) >= method.n_seen:
        raise InputError(
            f"evaluate: label {int(samples.labels.max())} is outside the {method.n_seen} classes learned so far."
        )
    device, n_groups = settings.device, len(groups)
    group_of = torch.repeat_interleave(torch.arange(n_groups), torch.tensor([len(g) for g in groups])).to(device)
    task_of_class = torch.repeat_interleave(torch.arange(method.n_tasks, device=device), method.task_sizes)
    own_classes = task_of_class[None] == torch.arange(method.n_tasks, device=device)[:, None]  # (T, C)
    order = torch.randperm(len(samples), generator=generator(settings.seed, "evaluation")).tolist()

    inferring = method if isinstance(method, TaskInferring) else None
    counts = {name: torch.zeros(n_groups, dtype=torch.int64, device=device) for name in ("all", "til", "id", "oracle")}
    method.eval()
    done = 0
    batches = fixed_batches(samples, settings.eval_batch_size, device=device, order=order, workers=settings.workers)
    for x, y in batches:
        rows = torch.tensor(order[done : done + len(y)], device=device)
        group, task = group_of[rows], task_of_class[y]
        with compute(method, device, settings.dtype):
            given = inferred = None
            if inferring is None:
                scores = method.scores(x)
            else:
                inferred = inferring.infer_task(x)
                scores = inferring.scores_given_task(x, inferred)
                if oracle:
                    given = _under_true_task(inferring, x, scores, inferred, task)
        _check_scores(scores, len(y), method)
        hits = {
            "all": scores.argmax(1) == y,
            "til": scores.masked_fill(~own_classes[task], -torch.inf).argmax(1) == y,
        }
        if inferred is not None:
            hits["id"] = inferred == task
        if given is not None:
            hits["oracle"] = given.argmax(1) == y
        for name, hit in hits.items():
            counts[name].index_add_(0, group, hit.long())
        done += len(y)
        if tick is not None:
            tick(len(y))
    lists = {name: count.tolist() for name, count in counts.items()}
    return Evaluation(
        totals=[len(g) for g in groups],
        correct=lists["all"],
        task_incremental=lists["til"],
        task_id=lists["id"] if inferring else None,
        oracle_id=lists["oracle"] if inferring and oracle else None,
        images=done,
        seconds=time.perf_counter() - began,
    )


def _under_true_task(method: TaskInferring, x: Tensor, scores: Tensor, inferred: Tensor, task: Tensor) -> Tensor:
    """Scores under the true task; samples whose task was right keep theirs, which are the same."""
    wrong = (inferred != task).nonzero().flatten()
    if len(wrong):
        scores = scores.clone()
        scores[wrong] = method.scores_given_task(x[wrong], task[wrong])
    return scores


def _check_scores(scores: Tensor, n: int, method: Method) -> None:
    if bool(scores.isnan().any()):
        raise InputError(f"{method.name}.scores gave values that are not numbers; was the model trained to the end?")
    if scores.shape != (n, method.n_seen):
        raise InputError(
            f"{method.name}.scores must be ({n}, {method.n_seen}): a score per class seen, got {tuple(scores.shape)}."
        )
