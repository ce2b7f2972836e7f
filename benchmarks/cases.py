"""What is measured: a method of the package after some tasks, and the same work done the plain way."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks import reference
from benchmarks.limits import forward_flops, multiply_rate, seconds, synchronise, training_flops
from ostinato.backbones import Arch, Preprocess, VisionBackbone
from ostinato.engine.precision import compute, prepare
from ostinato.engine.train import Settings, learn_task
from ostinato.methods.base import LearnTask, Method, Stage
from ostinato.registry import get_method

CLASSES = 5
"""Classes per task."""

ARCHS = {
    "base": Arch(dim=768, depth=12, heads=12, mlp_dim=3072),
    "tiny": Arch(dim=192, depth=12, heads=3, mlp_dim=768),
}


SIDE = 224
"""Of the images, in pixels."""


def random_backbone(name: str, patch: int = 16) -> VisionBackbone:
    """A frozen ViT with random weights, whose speed is that of any other."""
    torch.manual_seed(0)
    backbone = VisionBackbone(ARCHS[name], patch=patch, preprocess=Preprocess(SIDE, (0.5,) * 3, (0.5,) * 3))
    for p in backbone.parameters():
        torch.nn.init.trunc_normal_(p, std=0.02) if p.ndim > 1 else None
    return backbone.requires_grad_(False).eval()


class Images(Dataset[tuple[Tensor, int]]):
    """Random uint8 images in memory, of the classes of one task."""

    def __init__(self, n: int, size: int, classes: range) -> None:
        rng = torch.Generator().manual_seed(1)
        self.x = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=rng)
        self.y = [classes[i % len(classes)] for i in range(n)]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, key: Any) -> tuple[Tensor, int]:
        i = key[0] if isinstance(key, tuple) else key
        return self.x[i], self.y[i]

    def batch(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The first images and their labels."""
        return self.x[:size].to(device), torch.tensor(self.y[:size], device=device)


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        name: what is measured.
        method: its registered name.
        options: of the method.
        tasks: learned, or for training, the task that is being learned included.
        training: whether steps are measured or scores.
        reference: (method, x, y) of the plain implementation; a loss when training.
        known: the query is in the feature file from the second epoch on, as on images that are not augmented.
        flops: least arithmetic per image, where it is counted.
    """

    name: str
    method: str
    options: dict[str, Any]
    tasks: int
    training: bool
    reference: Callable[[Any, Tensor, Tensor], Tensor]
    known: bool = False
    flops: Callable[[Arch, int], float] | None = None


def _sum(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def _lieprompt(method: Any, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.randn(len(x), method.backbone.arch.depth, device=x.device)
    return _sum(reference.lieprompt_losses(method, x, y, noise))


SELECTED = {"top_k": 5, "pool_size": 5, "length": 5}

CASES = (
    Case(
        "DualPrompt, training, fixed views",
        "dualprompt",
        {},
        2,
        training=True,
        reference=reference.dualprompt_loss,
        known=True,
        flops=lambda arch, n: training_flops(arch, n, prefix=2),
    ),
    Case(
        "DualPrompt, training, augmented views",
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


@torch.no_grad()
def taught(case: Case, backbone: VisionBackbone, tasks: int, *, learning: bool = False) -> Method:
    """The case's method after so many tasks, with learned tensors drawn at random instead of trained.

    Args:
        case: what is measured.
        backbone: to build it on.
        tasks: that have begun.
        learning: the last one has not ended.
    """
    torch.manual_seed(2)
    method = get_method(case.method)(backbone, **case.options)
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
    """Medians over turns of ours, the reference and matrix products: all see the same states of the machine.

    Attributes:
        ours: seconds per image.
        reference: seconds per image, NaN where it was not asked for.
        limit: FLOP/s of large matrix products in our precision, NaN where the arithmetic of the case is not counted.
    """

    ours: float
    reference: float
    limit: float

    @classmethod
    def of(cls, turns: list[tuple[float, float, float]]) -> Measured:
        """Of the three figures of each turn."""
        return cls(*(statistics.median(figures) for figures in zip(*turns, strict=True)))


Beside = Callable[[], tuple[float, float]]
"""What follows ours in a turn: seconds of the reference per batch, and FLOP/s of matrix products."""


def _beside(case: Case, other: Callable[[], object] | None, settings: Settings) -> Beside:
    nan, device = float("nan"), settings.device

    def turn() -> tuple[float, float]:
        took = seconds(other, device) if other else nan
        return took, multiply_rate(settings.dtype, device, rounds=1) if case.flops else nan

    return turn


class _Steps:
    """Times our training steps and takes a turn after each that is not skipped."""

    def __init__(self, beside: Beside, device: torch.device, skip: int) -> None:
        self.beside, self.device, self.skip = beside, device, skip
        self.turns: list[tuple[float, float, float]] = []
        self.mark = 0.0

    def stage_started(self, task: int, stage: Stage, step: int, steps: int) -> None:  # noqa: ARG002
        self.mark = time.perf_counter()

    def stepped(self, position: Any, losses: Any, optimizer: Any, n: int) -> None:  # noqa: ARG002
        synchronise(self.device)
        took = time.perf_counter() - self.mark
        if position.step > self.skip:
            other, rate = self.beside()
            self.turns.append((took / n, other / n, rate))
        self.mark = time.perf_counter()


def measure(
    case: Case, model: str, *, batch: int, rounds: int, device: torch.device, dtype: torch.dtype, with_reference: bool
) -> Measured:
    """Time a case.

    Args:
        case: what to measure.
        model: "base" or "tiny".
        batch: images per step or per scored batch.
        rounds: of which the median counts; two more come first.
        device: where both compute.
        dtype: of our frozen weights; the reference is fp32.
        with_reference: off, it takes no time and its figure is NaN.
    """
    backbone = random_backbone(model)
    plain = None
    if with_reference:
        plain = taught(case, copy.deepcopy(backbone), case.tasks, learning=case.training).to(device)
    settings = Settings(device, dtype, overrides={"epochs": 2 if case.known else 1, "batch_size": batch})
    with tempfile.TemporaryDirectory() as folder:
        if case.training:
            ours = taught(case, backbone, case.tasks - 1)
            prepare(ours, device, dtype)
            return _training(case, ours, plain, settings, batch, rounds, folder)
        ours = taught(case, backbone, case.tasks)
        prepare(ours, device, dtype)
        if not case.known:
            ours.cache = None
        return _scoring(case, ours, plain, settings, batch, rounds)


def _training(
    case: Case, ours: Method, plain: Method | None, settings: Settings, batch: int, rounds: int, folder: str
) -> Measured:
    device = settings.device
    classes = range((case.tasks - 1) * CLASSES, case.tasks * CLASSES)
    images = Images(batch * (rounds + 2), ours.backbone.preprocess.size, classes)
    x, y = images.batch(batch, device)
    if case.known and ours.cache is not None:
        ours.cache.persist(folder)

    def other() -> None:
        optimizer = torch.optim.SGD([p for p in cast(Method, plain).train().parameters() if p.requires_grad], 0.0)
        case.reference(plain, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    def batches() -> Any:
        yield images.batch(max(batch, CLASSES), device)  # statistics need every class

    skip = 2 + (rounds + 2 if case.known else 0)
    steps = _Steps(_beside(case, other if plain else None, settings), device, skip)
    learn_task(ours, LearnTask(case.tasks - 1, classes, images, batches), settings, cast(Any, _FitOnly(steps)))
    return Measured.of(steps.turns)


class _FitOnly:
    """Ends the task when its main stage is over: what comes after it is not measured."""

    def __init__(self, steps: _Steps) -> None:
        self.steps, self.fit = steps, True

    def stage_started(self, task: int, stage: Stage, step: int, steps: int) -> None:
        self.fit = stage.name == "fit"
        self.steps.stage_started(task, stage, step, steps)

    def stepped(self, position: Any, losses: Any, optimizer: Any, n: int) -> None:
        if self.fit:
            self.steps.stepped(position, losses, optimizer, n)


@torch.inference_mode()
def _scoring(case: Case, ours: Method, plain: Method | None, settings: Settings, batch: int, rounds: int) -> Measured:
    device = settings.device
    images = Images(batch, ours.backbone.preprocess.size, range(CLASSES))
    x, y = images.batch(batch, device)
    ours.eval()
    beside = _beside(case, (lambda: case.reference(plain, x, y)) if plain else None, settings)
    turns = []
    for i in range(rounds + 2):
        with compute(ours, device, settings.dtype):
            took = seconds(lambda: ours.scores(x), device)
        if i >= 2:  # the plain side has nothing to warm up that one more pass would pay for
            other, rate = beside()
            turns.append((took / batch, other / batch, rate))
    return Measured.of(turns)
