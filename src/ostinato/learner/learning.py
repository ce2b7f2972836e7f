"""Data of a task as a method learns it, and more samples of known classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.evaluation.evaluator import SHOWN
from ostinato.methods.base import NOTHING_REFINES, LearnTask, Method
from ostinato.streams import LabeledDataset, Task, TaskStream, Transform
from ostinato.training.callbacks import Callback
from ostinato.training.loader import fixed_batches
from ostinato.training.loop import Settings

if TYPE_CHECKING:
    from ostinato.learner.learner import Learner


def passes(
    samples: LabeledDataset, transform: Transform, settings: Settings, callback: Callback
) -> Callable[..., Iterator[tuple[Tensor, Tensor]]]:
    """Passes over samples, or over those at given positions, in a fixed order.

    Args:
        samples: to pass over.
        transform: of inputs at test time.
        settings: device, batch size, loading processes.
        callback: called after every batch.
    """
    plain = samples.with_transform(transform)

    def batches(rows: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in fixed_batches(
            plain, settings.eval_batch_size, device=settings.device, order=rows, workers=settings.workers
        ):
            yield x, y
            callback.on_batch(len(y))

    return batches


def whole_task(learner: Learner, samples: LabeledDataset, callback: Callback) -> LearnTask:
    """Samples of classes that a learner knows, as a task without classes of its own."""
    n, batches = learner.method.n_seen, passes(samples, learner.eval_transform, learner.settings, callback)
    return LearnTask(learner.method.n_tasks, range(n, n), samples, batches, learner.settings.processes)


def check_refines(method: Method, names: Sequence[str]) -> str:
    """Name the part of a method that more samples of known classes refine.

    Args:
        method: that learned the classes.
        names: of the classes, for the message.

    Raises:
        InputError: if there is none.
    """
    part = None if method.data_seen == "all" else method.refines
    if part is None:
        more = " and more" if len(names) > SHOWN else ""
        raise InputError(
            f"{method.name} knows {', '.join(map(repr, names[:SHOWN]))}{more}, and {NOTHING_REFINES} Leave these "
            "classes out, or start a run on all data. Methods in closed form, such as 'duet' and 'ranpac', learn them."
        )
    return part


def check_history(method: Method, n: int, index: int) -> None:
    """Raise InputError unless the data of all ``index`` tasks before are there, of which ``n`` are."""
    if n < index:
        raise InputError(
            f"{method.name} trains on the data of all tasks, but that of tasks {n} to {index - 1} is missing. Run it "
            "on the whole stream, or choose a method that needs no old data."
        )


def parts_of(task: Task) -> tuple[list[LabeledDataset], list[LabeledDataset]]:
    """Training and validation samples of a task, those of known classes first."""
    known = [] if task.known is None else [task.known]
    held_out = [] if task.known_validation is None else [task.known_validation]
    return [*known, task.train], [*held_out, task.validation]


def counted(samples: Sequence[int], task: Task) -> list[int]:
    """Training samples of each class after a task, (n_seen,), given those before it."""
    labels = torch.cat([part.labels for part in parts_of(task)[0]])
    counts = torch.bincount(labels, minlength=task.n_seen).tolist()
    before = [*samples, *[0] * (task.n_seen - len(samples))]
    return [n + more for n, more in zip(before, counts, strict=True)]


def learned_tests(stream: TaskStream, n_tasks: int) -> list[LabeledDataset]:
    """Test samples of the tasks of a stream that are among the ``n_tasks`` learned; first those of known classes."""
    known = stream.known_test()
    tests = [stream.test(i) for i in range(min(len(stream), n_tasks - stream.offset_tasks))]
    return tests if known is None else [known, *tests]
