"""Comparison of a model under several protocols: per sample, or with one task id per batch of one task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.evaluation.evaluator import (
    BatchProtocol,
    batch_order,
    check_evidence,
    check_scores,
    check_shape,
    not_finite,
)
from ostinato.methods.base import Method, TaskInferring
from ostinato.streams import LabeledDataset
from ostinato.training.callbacks import Callback
from ostinato.training.loader import cut, given_batches
from ostinato.training.loop import Settings
from ostinato.training.precision import compute

SAMPLE = "sample"
ORACLE = "true task"


@dataclass(frozen=True)
class Scored:
    """Result of a rule of task inference under a protocol.

    Attributes:
        rule: its name.
        protocol: "sample", the name of a batch protocol, or "true task".
        accuracy: fraction of correct predictions among all classes seen.
        task_id_accuracy: fraction of correctly inferred tasks.
    """

    rule: str
    protocol: str
    accuracy: float
    task_id_accuracy: float


@torch.inference_mode()
def compare_protocols(
    method: Method,
    groups: Sequence[LabeledDataset],
    settings: Settings,
    *,
    size: int = 24,
    shots: Sequence[int] = (3, 5, 7),
    rules: Sequence[str] | None = None,
    label_groups: Tensor | None = None,
    callback: Callback | None = None,
) -> list[Scored]:
    """Score a model per sample, by the vote of a batch, and by the first images of a batch.

    Batches hold ``size`` images of one task in a seeded order. The evidence of a rule, and the scores under each task
    that a protocol infers, are computed once per image.

    Args:
        method: infers tasks and has seen the classes of all groups.
        groups: test samples per task under the test transform.
        settings: device, precision, batch size, seed.
        size: images per batch.
        shots: numbers of first images that decide; the whole batch is added ("m-batch").
        rules: names of the method's rules; None for all.
        label_groups: as in :func:`ostinato.evaluation.evaluator.evaluate`.
        callback: called after every batch.

    Returns:
        Per rule: sample, majority, each number of shots; then the true task once.

    Raises:
        InputError: if the method infers no task, lacks a rule, or gives scores or evidence that are not finite.
    """
    if not isinstance(method, TaskInferring):
        raise InputError(f"Batch protocols need a method that infers tasks; {method.name} does not.")
    known = method.rules()
    names = list(known) if rules is None else list(rules)
    if wrong := [name for name in names if name not in known]:
        raise InputError(f"{method.name} has no rule {wrong[0]!r}; it has {list(known)}.")
    callback = callback or Callback()
    method.eval()
    samples = LabeledDataset.concat(list(groups))
    batches = batch_order([len(g) for g in groups], settings.seed, size)
    order = torch.tensor([i for batch in batches for i in batch])
    true = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(g) for g in groups]))

    evidence = {name: torch.zeros(len(samples), method.n_tasks) for name in names}
    done = 0
    for x, _ in given_batches(samples, cut(order.tolist(), settings.eval_batch_size), device=settings.device):
        rows = order[done : done + len(x)]
        with compute(method, settings.device, settings.dtype):
            for name in names:
                evidence[name][rows] = known[name](x).float().cpu()
        done += len(x)
        callback.on_batch(len(x))

    for name in names:
        check_evidence(method, not_finite(evidence[name]), name)
    protocols = [BatchProtocol(size), *(BatchProtocol(size, k) for k in shots if k < size), BatchProtocol(size, size)]
    given: dict[tuple[str, str], Tensor] = {}
    for name in names:
        given[name, SAMPLE] = evidence[name].argmax(1)
        for protocol in protocols:
            tasks = torch.zeros_like(true)
            for batch in batches:
                tasks[batch] = protocol.choose(evidence[name][batch])
            given[name, protocol.name] = tasks
    given["-", ORACLE] = true

    pairs = torch.stack([torch.cat(list(given.values())), torch.arange(len(samples)).repeat(len(given))])
    right = _right(method, samples, torch.unique(pairs, dim=1), settings, label_groups, callback)
    return [
        Scored(
            rule,
            protocol,
            right[tasks, torch.arange(len(samples))].float().mean().item(),
            (tasks == true).float().mean().item(),
        )
        for (rule, protocol), tasks in given.items()
    ]


def _right(
    method: TaskInferring,
    samples: LabeledDataset,
    pairs: Tensor,
    settings: Settings,
    label_groups: Tensor | None,
    callback: Callback,
) -> Tensor:
    """Correctness (T, samples) of samples under tasks, computed for the given pairs (2, n) of task and sample."""
    right = torch.zeros(method.n_tasks, len(samples), dtype=torch.bool)
    done, (tasks, rows) = 0, pairs
    answer = (torch.arange(method.n_seen) if label_groups is None else label_groups).to(settings.device)
    bad = torch.zeros(method.n_seen, dtype=torch.int64, device=settings.device)
    for x, y in given_batches(samples, cut(rows.tolist(), settings.eval_batch_size), device=settings.device):
        part = slice(done, done + len(x))
        with compute(method, settings.device, settings.dtype):
            scores = method.scores_given_task(x, tasks[part].to(x.device))
        check_shape(scores, len(y), method)
        bad += not_finite(scores)
        right[tasks[part], rows[part]] = (answer[scores.argmax(1)] == answer[y]).cpu()
        done += len(x)
        callback.on_batch(len(x))
    check_scores(method, bad)
    return right
