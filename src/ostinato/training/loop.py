"""Training loop: the stages of a task and their steps, for any method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from ostinato.distributed import SINGLE_PROCESS, ProcessGroup
from ostinato.errors import InputError
from ostinato.methods.base import LearnTask, Losses, Method, Recipe, Stage
from ostinato.streams.base import Samples
from ostinato.training.callbacks import Callback, Position
from ostinato.training.divergence import Guard
from ostinato.training.loader import n_batches, training_batches
from ostinato.training.optim import lr_factor, make_optimizer, set_lr
from ostinato.training.precision import compute
from ostinato.training.seeding import seeded


@dataclass(frozen=True)
class Settings:
    """Settings of training and evaluation on a machine.

    Attributes:
        device: of the computation.
        dtype: precision of frozen weights and of autocast.
        seed: of initialisation, order and augmentation.
        overrides: the user's fields of the recipe.
        accumulate: micro-batches per step; the batch size stays the number of samples per step.
        workers: loading processes.
        eval_batch_size: samples per batch in passes without training.
        processes: that share every batch.
        on_divergence: stop or warn when a loss or the parameters explode.
    """

    device: torch.device
    dtype: torch.dtype
    seed: int = 0
    overrides: dict[str, Any] | None = None
    accumulate: int = 1
    workers: int = 0
    eval_batch_size: int = 64
    processes: ProcessGroup = SINGLE_PROCESS
    on_divergence: Literal["stop", "warn"] = "warn"

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the user's fields in place of the paper's."""
        return replace(recipe, **(self.overrides or {}))


def learn_task(
    method: Method,
    task: LearnTask,
    settings: Settings,
    callback: Callback | None = None,
    *,
    resume: tuple[Position, dict[str, Tensor]] | None = None,
) -> float:
    """Train a method on a task.

    Args:
        method: on its device, with the state of the tasks before.
        task: classes and data.
        settings: device, precision, seed, overrides.
        callback: called after every step.
        resume: position and optimiser state of a checkpoint whose state the method holds.

    Returns:
        Seconds spent.

    Raises:
        DivergedError: if a loss, a gradient or a parameter is not finite, or explodes under on_divergence="stop".
    """
    callback = callback or Callback()
    began = time.perf_counter()
    method.train()
    if resume is None:
        with seeded(settings.device, settings.seed, "init", task.index):
            method.begin_task(task)
        if method.n_tasks != task.index + 1 or method.n_seen != task.classes.stop:
            raise InputError(
                f"{method.name}: after begin_task of task {task.index} there must be {task.index + 1} tasks and "
                f"{task.classes.stop} classes, but there are {method.n_tasks} and {method.n_seen}. Let begin_task call "
                "super().begin_task(task) first."
            )
    at, optimizer_state = resume or (Position(0, 0), None)
    for number, stage in enumerate(method.stages(task)):
        if number < at.stage:
            continue
        start = at if number == at.stage else Position(number, 0)
        state = optimizer_state if number == at.stage else None
        _run_stage(method, task, stage, start, state, settings, callback)
    method.eval()
    seeds = seeded(settings.device, settings.seed, "end", task.index)
    with torch.no_grad(), compute(method, settings.device, settings.dtype), seeds:
        method.end_task(task)
    # Processes are equal already, except for the last bits on different machines.
    settings.processes.broadcast(list(method.learned_state().values()))
    return time.perf_counter() - began


def update(method: Method, by: Callable[[LearnTask], None], task: LearnTask, settings: Settings) -> float:
    """Update a method between two tasks from samples of known classes.

    Args:
        method: on its device.
        by: the method's ``refine`` or ``forget``.
        task: the samples; its classes are empty.
        settings: device, precision, seed.

    Returns:
        Seconds spent.

    Raises:
        InputError: if the method cannot, or the samples do not fit.
    """
    began = time.perf_counter()
    method.eval()
    seeds = seeded(settings.device, settings.seed, by.__name__, task.index)
    with torch.no_grad(), compute(method, settings.device, settings.dtype), seeds:
        by(task)
    settings.processes.broadcast(list(method.learned_state().values()))
    return time.perf_counter() - began


def _run_stage(
    method: Method,
    task: LearnTask,
    stage: Stage,
    start: Position,
    optimizer_state: dict[str, Tensor] | None,
    settings: Settings,
    callback: Callback,
) -> None:
    """Run the steps of a stage from ``start`` on."""
    where = (task.index, start.stage)
    if stage.prepare is not None and start.step == 0:
        # Evaluation mode, so that frozen features are cached and there is no dropout.
        method.eval()
        seeds = seeded(settings.device, settings.seed, "prepare", *where)
        with torch.no_grad(), compute(method, settings.device, settings.dtype), seeds:
            stage.prepare()
        method.train()
    recipe = stage.recipe or settings.recipe(method.recipe)
    data: Samples = task.train if stage.data is None else stage.data
    # A method's own samples are cheap, and every process trains on all of them.
    processes, workers = (settings.processes, settings.workers) if stage.data is None else (SINGLE_PROCESS, 0)
    params = list(stage.params) if stage.params is not None else [p for p in method.parameters() if p.requires_grad]
    slow = list(method.backbone.parameters()) if method.trains_backbone else []
    optimizer = make_optimizer(recipe, params, slow)
    if optimizer_state:
        restore_optimizer(optimizer, optimizer_state)
    n = len(data)
    per_epoch = n_batches(n, recipe.batch_size)
    steps = per_epoch * recipe.epochs
    guard = Guard(
        f"task {task.index + 1}, stage {stage.name!r}", recipe, callback, params,
        fixed=stage.recipe is not None, stop=settings.on_divergence == "stop", seen=start.seen,
    )  # fmt: skip
    callback.on_stage_start(task.index, stage, start.step, steps)
    step = start.step
    while step < steps:
        epoch = step // per_epoch
        batches = training_batches(
            data, recipe.batch_size, seed=settings.seed, position=where, epoch=epoch, start=step % per_epoch,
            device=settings.device, workers=workers, processes=processes,
        )  # fmt: skip
        for x, y, share in batches:
            set_lr(optimizer, recipe.lr * lr_factor(recipe, step, steps))
            with seeded(
                settings.device, settings.seed, "step", *where, step, *([processes.rank] if processes.rank else [])
            ):
                check = partial(guard.check, step + 1)
                losses = _step(method, stage, x, y, share, optimizer, params, recipe, settings, processes, check)
            done = min((step % per_epoch + 1) * recipe.batch_size, n) - step % per_epoch * recipe.batch_size
            step += 1
            if step == steps:
                guard.close()
            # After all warnings of the step, so that a checkpoint includes them.
            callback.on_step(Position(start.stage, step, guard.seen), losses, optimizer, done)


def _step(
    method: Method,
    stage: Stage,
    x: Tensor,
    y: Tensor,
    part: float,
    optimizer: torch.optim.Optimizer,
    params: Sequence[nn.Parameter],
    recipe: Recipe,
    settings: Settings,
    processes: ProcessGroup,
    check: Callable[[dict[str, float], list[float]], None],
) -> dict[str, float]:
    """Run a step: forward, backward, sum over processes, check, clip, optimiser, in this order.

    Loss terms are means over samples, so each part of a batch is weighted by its share. Terms over a whole batch are
    computed per process and micro-batch.
    """
    optimizer.zero_grad(set_to_none=True)
    means: dict[str, Tensor] = {}
    for xs, ys in zip(x.chunk(settings.accumulate), y.chunk(settings.accumulate), strict=True):
        share = part * len(ys) / len(y)
        with compute(method, settings.device, settings.dtype):
            losses: Losses = {name: share * term for name, term in stage.loss(xs, ys).items()}
        stage.backward(losses)
        for name, term in losses.items():
            means[name] = means.get(name, torch.zeros((), device=term.device)) + term.detach()
    terms = torch.stack(list(means.values()))
    processes.all_reduce_gradients(params)
    processes.all_reduce([terms, *stage.gradients()])
    average(processes, stage.averages(), part)
    norm = get_total_norm([p.grad for p in params if p.grad is not None])
    norms = [norm, get_total_norm(apart)] if (apart := stage.gradients()) else [norm]
    # One synchronisation with the device per step.
    read = torch.cat([terms, torch.stack([n.to(terms.device) for n in norms])]).tolist()
    values = dict(zip(means, read, strict=False))
    check(values, read[len(values) :])
    if recipe.clip is not None:
        clip_grads_with_norm_(params, recipe.clip, norm)
    stage.step(optimizer)
    return values


def average(processes: ProcessGroup, buffers: Sequence[Tensor], part: float) -> None:
    """Replace buffers by their mean over processes, weighted by each one's part of the batch."""
    if processes.size > 1:
        for buffer in buffers:
            buffer.mul_(part)
        processes.all_reduce(buffers)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Per-parameter state of an optimiser, as tensors by ``<parameter number>.<entry>``."""
    return {
        f"{i}.{name}": torch.as_tensor(value)
        for i, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Restore the state of :func:`optimizer_tensors`.

    Raises:
        InputError: if it has more parameters than the optimiser.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    full = optimizer.state_dict()
    n = sum(len(group["params"]) for group in full["param_groups"])
    if state and max(state) >= n:
        raise InputError(f"The saved optimiser state has {max(state) + 1} parameters, the stage has {n}.")
    optimizer.load_state_dict({"state": state, "param_groups": full["param_groups"]})
