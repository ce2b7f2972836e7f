"""Benchmark cases: a method of the package after some tasks, and the same work in plain code."""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import reference
from benchmarks.limits import Shapes, counter, forward_flops, multiply_rate, seconds, synchronise, training_flops
from ostinato.backbones import Arch, Backbone, Preprocess, VisionBackbone
from ostinato.contract.tiny_models import random_backbone as tiny_backbone
from ostinato.lookup import get_method, methods
from ostinato.methods.base import LearnTask, Method, Stage
from ostinato.training.callbacks import Callback
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import compute, prepare

CPU = torch.device("cpu")
CLASSES = 5
"""Classes per task."""

ARCHS = {
    "small": Arch(dim=48, depth=12, heads=3, mlp_dim=96),
    "base": Arch(dim=768, depth=12, heads=12, mlp_dim=3072),
    "tiny": Arch(dim=192, depth=12, heads=3, mlp_dim=768),
}


SIDE = 224
"""Side of the images in pixels."""

SIDES = {"small": 64}
"""Side of the images of tiny models in pixels."""


def tokens(name: str, patch: int = 16) -> int:
    """Number of token positions of an image."""
    return (SIDES.get(name, SIDE) // patch) ** 2 + 1


def random_backbone(name: str, patch: int = 16) -> VisionBackbone:
    """Make a frozen ViT with random weights, which do not affect its speed."""
    torch.manual_seed(0)
    side = SIDES.get(name, SIDE)
    backbone = VisionBackbone(ARCHS[name], patch=patch, preprocess=Preprocess(side, (0.5,) * 3, (0.5,) * 3))
    for p in backbone.parameters():
        torch.nn.init.trunc_normal_(p, std=0.02) if p.ndim > 1 else None
    return backbone.requires_grad_(False).eval()


class Images(Dataset[tuple[Tensor, int]]):
    """Random uint8 images in memory, of the classes of one task.

    Args:
        n: number of images.
        size: side in pixels.
        classes: classes, assigned in turns.
        seed: seed of the pixels.
        pin: build batches in pinned memory.
    """

    pin = False
    loaded: Callable[[], None] | None = None
    """Called when a batch is joined."""

    def __init__(self, n: int, size: int, classes: range, *, seed: int = 1, pin: bool = False) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.pin = pin
        self.x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng)
        self.y = [classes[i % len(classes)] for i in range(n)]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        i = key[0] if isinstance(key, tuple) else key
        return self.x[i], self.y[i]

    def collate(self, samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        """Samples as a batch."""
        x, y = default_collate(samples)
        if self.pin:
            x, y = x.pin_memory(), y.pin_memory()
        if self.loaded is not None:
            self.loaded()
        return x, y

    def batch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The first images and their labels."""
        return self.x[:size].to(device), torch.tensor(self.y[:size], device=device)


@dataclass(frozen=True)
class Case:
    """A case, a row of the table.

    Attributes:
        name: name of the case.
        method: registered name of the method.
        options: options of the method.
        tasks: number of tasks, including the current one in training.
        training: measure training steps, else scores.
        reference: plain implementation (method, x, y); returns a loss in training.
        known: the query is cached from the second epoch on, as for images without augmentation.
        flops: least arithmetic per image, if known.
        closed: training is a pass over the task's images without optimisation.
    """

    name: str
    method: str
    options: dict[str, Any]
    tasks: int
    training: bool
    reference: Callable[[Any, Tensor, Tensor], Tensor]
    known: bool = False
    flops: Callable[[Arch, int], float] | None = None
    closed: bool = False


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _lieprompt(method: Any, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.randn(len(x), method.backbone.arch.depth, device=x.device)
    return _sum(reference.lieprompt_losses(method, x, y, noise))


SELECTED = {"top_k": 5, "pool_size": 5, "length": 5}

CASES = (
    Case(
        "DualPrompt, training, fixed transforms",
        "dualprompt",
        {},
        2,
        training=True,
        reference=reference.dualprompt_loss,
        known=True,
        flops=lambda arch, n: training_flops(arch, n, prefix=2),
    ),
    Case(
        "DualPrompt, training, augmented transforms",
        "dualprompt",
        {},
        2,
        training=True,
        reference=reference.dualprompt_loss,
        flops=lambda arch, n: training_flops(arch, n, prefix=2) + forward_flops(arch, n),
    ),
    Case(
        "DualPrompt, evaluation, images that come again",
        "dualprompt",
        {},
        10,
        training=False,
        reference=lambda m, x, y: reference.dualprompt_scores(m, x),  # noqa: ARG005
        known=True,
        flops=lambda arch, n: forward_flops(arch, n, prefix=2),
    ),
    Case(
        "CL-LoRA, training, 20 tasks",
        "cl_lora",
        {},
        20,
        training=True,
        reference=lambda m, x, y: _sum(reference.cl_lora_losses(m, x, y)),
    ),
    Case(
        "CL-LoRA, evaluation, 20 tasks",
        "cl_lora",
        {},
        20,
        training=False,
        reference=lambda m, x, y: reference.cl_lora_scores(m, x),  # noqa: ARG005
    ),
    Case(
        "Soft-TF, evaluation under all 10 tasks",
        "soft_tf",
        {"task_id": "min_entropy"},
        10,
        training=False,
        reference=lambda m, x, y: reference.soft_tf_scores(m, x),  # noqa: ARG005
    ),
    Case(
        "LiEPrompt, training, 5 of 5 prompts selected",
        "lieprompt",
        SELECTED,
        2,
        training=True,
        reference=_lieprompt,
    ),
)
"""Cases of the table of a CPU."""

MORE = (
    Case(
        "DualPrompt, evaluation, new images",
        "dualprompt",
        {},
        10,
        training=False,
        reference=lambda m, x, y: reference.dualprompt_scores(m, x),  # noqa: ARG005
        flops=lambda arch, n: forward_flops(arch, n, prefix=2) + forward_flops(arch, n),
    ),
    Case("Soft-TF, training", "soft_tf", {}, 2, training=True, reference=reference.soft_tf_loss),
    Case(
        "LiEPrompt, evaluation, 5 of 5 prompts selected",
        "lieprompt",
        SELECTED,
        2,
        training=False,
        reference=lambda m, x, y: reference.lieprompt_scores(m, x),  # noqa: ARG005
    ),
)
"""Further cases of a GPU."""


def closed_forms() -> list[Case]:
    """Make training and evaluation cases of every registered method for images without optimisation.

    Their reference is the plain pass alone, since the work on the features takes almost no time.
    """
    cases = []
    for name, cls in methods().items():
        if cls.needs is not Backbone and not issubclass(VisionBackbone, cls.needs):
            continue
        method = cls(tiny_backbone())
        images = Images(CLASSES, method.backbone.preprocess.size, range(CLASSES))
        task = LearnTask(0, range(CLASSES), images, lambda *_, images=images: iter([images.batch(CLASSES, CPU)]))
        method.begin_task(task)
        if list(method.stages(task)):
            continue
        cases += [
            Case(f"{name}, training", name, {}, 2, training=True, reference=_pass, flops=forward_flops, closed=True),
            Case(f"{name}, evaluation", name, {}, 10, training=False, reference=_pass, flops=forward_flops),
        ]
    return cases


def _pass(method: Any, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001 - called as all references are
    with torch.no_grad():
        return reference.encode(method.backbone, x)


def all_cases() -> list[Case]:
    """List all cases."""
    return [*CASES, *MORE, *closed_forms()]


@torch.no_grad()
def taught(case: Case, backbone: VisionBackbone, tasks: int, *, learning: bool = False) -> Method:
    """Make the method of a case after a number of tasks, with random instead of trained tensors.

    Args:
        case: case to measure.
        backbone: backbone of the method.
        tasks: number of tasks that have begun.
        learning: the last task has not ended.
    """
    torch.manual_seed(2)
    method = get_method(case.method)(backbone, **case.options)
    method.to(next(backbone.parameters()).device)
    images = Images(CLASSES, backbone.preprocess.size, range(CLASSES))
    for i in range(tasks):
        classes = range(i * CLASSES, (i + 1) * CLASSES)
        images.y = list(classes)

        def batches() -> Any:
            yield images.batch(CLASSES, method.device)

        task = LearnTask(i, classes, images, batches)
        method.train()
        method.begin_task(task)
        for name, p in method.named_parameters():
            if "backbone" not in name.split("."):
                p.add_(0.01 * torch.randn_like(p))
        for stage in method.stages(task):
            if stage.prepare is not None and stage.name == "fit":
                stage.prepare()
        if learning and i == tasks - 1:
            break
        method.eval()
        method.end_task(task)
    return method


@dataclass(frozen=True)
class Measured:
    """Medians over turns of ours, the reference and matrix products, which see the same states of the machine.

    Attributes:
        ours: seconds per image.
        reference: seconds per image; NaN if not measured.
        limit: FLOP/s of large matrix products in our precision; NaN if not measured.
        done: our arithmetic per image in FLOP as torch counts it; NaN if not counted.
        memory: our peak memory on a GPU in bytes, with the backbone, without the reference; NaN on a CPU.
    """

    ours: float
    reference: float
    limit: float
    done: float
    memory: float


@dataclass(frozen=True)
class _How:
    """Options of a measurement, see :func:`measure`."""

    case: Case
    settings: Settings
    batch: int
    rounds: int
    count: bool
    shapes: Shapes | None

    @property
    def limited(self) -> bool:
        """Tell whether to measure the rate of matrix products."""
        return self.count or self.case.flops is not None


class _Turns:
    """Timer of our work, the reference and matrix products in turns.

    Args:
        how: device, precision and other options.
        plain: method of the reference, or None.
        other: batch of the reference, or None.
    """

    def __init__(self, how: _How, plain: Method | None, other: Callable[[], object] | None) -> None:
        self.how, self.other = how, other
        parts = [] if plain is None else [*plain.parameters(), *plain.buffers()]
        self.held = sum(t.numel() * t.element_size() for t in parts)
        self.turns: list[tuple[float, float, float]] = []
        self.done = self.memory = float("nan")
        self._counting: FlopCounterMode | None = None
        self._mark = 0.0

    def begin(self) -> None:
        """Begin our work."""
        device = self.how.settings.device
        synchronise(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._mark = time.perf_counter()

    def loaded(self) -> None:
        """Exclude the loading of a batch, which loading processes do ahead."""
        self._mark = time.perf_counter()

    def end(self, n: int) -> None:
        """End our work for ``n`` images."""
        device = self.how.settings.device
        synchronise(device)
        took = time.perf_counter() - self._mark
        if device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(device) - self.held
            self.memory = max(peak, 0 if math.isnan(self.memory) else self.memory)
        other = seconds(self.other, device) if self.other else float("nan")
        limit = float("nan")
        if self.how.limited:
            limit = multiply_rate(self.how.settings.dtype, device, rounds=1, shapes=self.how.shapes)
        self.turns.append((took / n, other / n, limit))

    def count(self) -> None:
        """Start to count the arithmetic, if requested."""
        if self.how.count:
            self._counting = counter()
            self._counting.__enter__()

    def counted(self, n: int | None = None) -> None:
        """Stop to count after ``n`` images; None after an interruption."""
        if self._counting is None:
            return
        self._counting.__exit__(None, None, None)
        if n is not None:
            self.done = self._counting.get_total_flops() / n
        self._counting = None

    def result(self) -> Measured:
        """Return the medians."""
        ours, reference, limit = (statistics.median(figures) for figures in zip(*self.turns, strict=True))
        return Measured(ours, reference, limit, self.done, self.memory)


class _Steps(Callback):
    """Callback that times training steps; a turn follows each step after the skipped ones, of which the last counts."""

    def __init__(self, turns: _Turns, skip: int) -> None:
        self.turns, self.skip, self.fit = turns, skip, True

    def on_stage_start(self, task: int, stage: Stage, step: int, steps: int) -> None:  # noqa: ARG002
        self.fit = stage.name == "fit"  # later stages are not measured

    def on_step(self, position: Any, losses: Any, optimizer: Any, n: int) -> None:  # noqa: ARG002
        if not self.fit:
            return
        self.turns.counted(n)
        if position.step > self.skip:
            self.turns.end(n)
        elif position.step == self.skip - 1:
            self.turns.count()
        self.turns.begin()


def measure(
    case: Case,
    model: str,
    *,
    batch: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    with_reference: bool,
    count: bool = False,
    shapes: Shapes | None = None,
) -> Measured:
    """Measure a case.

    Args:
        case: case to measure.
        model: key of ``ARCHS``.
        batch: images per step or per scored batch.
        rounds: rounds after two warm-up rounds; the median counts.
        device: device of both sides.
        dtype: dtype of our frozen weights; the reference is fp32.
        with_reference: measure the reference, else its figure is NaN.
        count: let torch count our arithmetic in a step or batch that is not timed.
        shapes: shapes of the matrix products; None for the default of the device.
    """
    backbone = random_backbone(model).to(device)
    plain = None
    if with_reference:
        learning = case.training and not case.closed
        plain = taught(case, copy.deepcopy(backbone), case.tasks, learning=learning)
    settings = Settings(device, dtype, overrides={"epochs": 2 if case.known else 1, "batch_size": batch})
    how = _How(case, settings, batch, rounds, count, shapes)
    with tempfile.TemporaryDirectory() as folder:
        ours = taught(case, backbone, case.tasks - 1 if case.training else case.tasks)
        prepare(ours, device, dtype)
        if case.closed and case.training:
            return _passing(how, ours, plain)
        if case.training:
            return _training(how, ours, plain, folder)
        if not case.known and ours.frozen is not None:
            ours.frozen.feature_cache = None
        return _scoring(how, ours, plain)


def _training(how: _How, ours: Method, plain: Method | None, folder: str) -> Measured:
    """Number of steps in a task's main stage."""
    case, batch, rounds, device = how.case, how.batch, how.rounds, how.settings.device
    classes = range((case.tasks - 1) * CLASSES, case.tasks * CLASSES)
    images = Images(batch * (rounds + 2), ours.backbone.preprocess.size, classes, pin=device.type == "cuda")
    x, y = images.batch(batch, device)
    if case.known and ours.frozen is not None:
        ours.frozen.persist(folder)

    def other() -> None:
        optimizer = torch.optim.SGD([p for p in cast(Method, plain).train().parameters() if p.requires_grad], 0.0)
        case.reference(plain, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def batches() -> Any:
        yield images.batch(max(batch, CLASSES), device)  # statistics need every class

    turns = _Turns(how, plain, other if plain else None)
    images.loaded = turns.loaded
    steps = _Steps(turns, skip=2 + (rounds + 2 if case.known else 0))
    try:
        learn_task(ours, LearnTask(case.tasks - 1, classes, images, batches), how.settings, cast(Any, steps))
    finally:
        turns.counted()
    return turns.result()


def _passing(how: _How, ours: Method, plain: Method | None) -> Measured:
    """Measure whole tasks, one batch each, of a method that learns in one pass."""
    device, size = how.settings.device, ours.backbone.preprocess.size
    turns = _Turns(how, plain, None)
    for i in range(how.rounds + 2):
        classes = range(ours.n_seen, ours.n_seen + CLASSES)
        images = Images(max(how.batch, CLASSES), size, classes, seed=2 + i)  # new ones: nothing is looked up
        x, y = images.batch(len(images), device)
        task = LearnTask(ours.n_tasks, classes, images, lambda x=x, y=y: iter([(x, y)]))
        turns.other = (lambda x=x, y=y: how.case.reference(plain, x, y)) if plain else None
        if i == 1:
            turns.count()
        turns.begin()
        learn_task(ours, task, how.settings)
        if i < 2:
            turns.counted(len(images))
        else:
            turns.end(len(images))
    return turns.result()


@torch.inference_mode()
def _scoring(how: _How, ours: Method, plain: Method | None) -> Measured:
    batch, device = how.batch, how.settings.device
    images = Images(batch, ours.backbone.preprocess.size, range(CLASSES))
    x, y = images.batch(batch, device)
    ours.eval()
    turns = _Turns(how, plain, (lambda: how.case.reference(plain, x, y)) if plain else None)
    for i in range(how.rounds + 2):  # the plain side needs no further warm-up
        if i == 1:
            turns.count()
        turns.begin()
        with compute(ours, device, how.settings.dtype):
            ours.scores(x)
        if i < 2:
            turns.counted(batch)
        else:
            turns.end(batch)
    return turns.result()
