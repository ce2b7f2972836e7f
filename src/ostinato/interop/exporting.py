"""Export of a learned model to one file, which is compared with the model before it is put in place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.backbones import VisionBackbone
from ostinato.errors import InputError, OstinatoError, did_you_mean
from ostinato.files import write_bytes
from ostinato.interop.about import ExportRecord
from ostinato.interop.formats import FORMATS, Run
from ostinato.learner import Learner
from ostinato.methods.base import Method
from ostinato.records import PreprocessRecord

TOLERANCE = 1e-4
"""Largest difference of a score, see :func:`largest_difference`."""

BATCH_SIZES = (1, 5)
"""Batches that are compared; files are made from a batch of :data:`TRACED`."""

TRACED = 3


class Scores(nn.Module):
    """Scores of a learned method from pixels alone.

    Args:
        method: learned, in evaluation mode.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = with_fixed_tasks(method)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores (B, C) in fp32 of pixels (B, 3, S, S) in uint8."""
        return self.method.scores(pixels).float()


def with_fixed_tasks(method: Method) -> Method:
    """A method on the same tensors whose tasks and classes are constants.

    They are computed from a buffer, whose values a recorded program does not know.
    """
    sizes, tasks, kind = method.classes_per_task, method.task_of_class, type(method)
    constants = {"classes_per_task": property(lambda _: sizes), "task_of_class": property(lambda _: tasks)}
    fixed = copy(method)
    fixed.__class__ = type(kind.__name__, (kind,), constants)
    return fixed


@dataclass(frozen=True)
class Export:
    """A written file.

    Attributes:
        path: of the file.
        bytes: its size.
        difference: largest difference to the scores of the model, see :func:`largest_difference`.
    """

    path: Path
    bytes: int
    difference: float


def export(learner: Learner, path: str | Path, to: str) -> Export:
    """Write a learner of images as one file from pixels to scores of all classes.

    The file is run beside the learner on random images in batches of 1 and 5 before it gets its name.

    Args:
        learner: loaded with ``device="cpu", precision="fp32"``.
        path: a new file with the suffix of the format.
        to: "onnx", "pt2" or "torchscript".

    Raises:
        InputError: if the learner is one of texts or on another device, if its method cannot be exported, or if the
            scores of the file differ by more than :data:`TOLERANCE`.
    """
    path = Path(path)
    check_target(path, to)
    _check(learner)
    about = describe(learner)
    data, difference = convert(learner.method, check_images(about.preprocess.size), about.dumps(), to)
    write_bytes(path, data)
    return Export(path, len(data), difference)


def convert(method: Method, images: Tensor, about: str, to: str) -> tuple[bytes, float]:
    """A method's scores as a file, and its largest difference to the method, see :func:`largest_difference`.

    Args:
        method: learned, on the CPU in fp32.
        images: pixels (5, 3, S, S) in uint8 to compare.
        about: description to put into the file.
        to: format.

    Raises:
        InputError: as :func:`export`.
    """
    kind, scores = FORMATS[to], Scores(method).eval()
    with torch.no_grad(), without_caches(method):
        want = scores(images)  # also computes what a method keeps once it has been asked
        try:
            data = kind.write(scores, images[:TRACED], about)
            run = kind.load(data)
        except OstinatoError:
            raise
        except Exception as error:  # of any kind, for operations that have no translation
            raise InputError(
                f"export: {method.name} with its options cannot be written as {to}: {reason_of(error)} "
                "'ostinato export RUN --to bundle' keeps all of it."
            ) from error
        return data, _compared(run, images, want, method.name, to)


def describe(learner: Learner) -> ExportRecord:
    """Description of a learner of images."""
    preprocess = cast(VisionBackbone, learner.method.backbone).preprocess
    return ExportRecord(
        version=version("ostinato"),
        method=learner.method.name,
        backbone=learner.spec.name,
        class_names=learner.class_names,
        temperature=learner.temperature,
        protocol=learner.method.protocol,
        preprocess=PreprocessRecord(
            size=preprocess.size,
            mean=list(preprocess.mean),
            std=list(preprocess.std),
            interpolation=preprocess.interpolation,  # pyright: ignore[reportArgumentType]
        ),
        crop=learner.crop,
    )


def check_images(size: int) -> Tensor:
    """Random pixels (5, 3, size, size) in uint8: spots with noise, the same at every call."""
    rng = torch.Generator().manual_seed(0)
    spots = F.interpolate(torch.rand(max(BATCH_SIZES), 3, 4, 4, generator=rng), (size, size), mode="bilinear")
    noise = torch.rand(spots.shape, generator=rng)
    return (255 * (0.8 * spots + 0.2 * noise)).round().to(torch.uint8)


def check_target(path: Path, to: str) -> None:
    """Raise InputError unless a file of a format can be written to a path."""
    if to not in FORMATS:
        raise InputError(f"export: {to!r} is no format. {did_you_mean(to, list(FORMATS))}")
    kind = FORMATS[to]
    if path.suffix != kind.suffix:
        raise InputError(f"export: the file of --to {to} must end with {kind.suffix}, got {path.name!r}.")
    if path.exists() or path.is_symlink():
        raise InputError(f"export: {path} exists. Delete it first, or choose another name.")
    if not path.parent.is_dir():
        raise InputError(f"export: {path.parent} must be a folder, so that {path.name} can be written there.")


def _check(learner: Learner) -> None:
    """Raise InputError unless a learner is of images, on the CPU in fp32."""
    if not learner.class_names:
        raise InputError("export: no class was learned yet; call learn first.")
    if learner.method.backbone.modality != "image":
        raise InputError(
            "export: only models of images are exported. A model of texts needs its tokenizer, which no such file "
            "holds; 'ostinato export RUN --to bundle' keeps it."
        )
    settings = learner.settings
    if settings.device.type != "cpu" or settings.dtype != torch.float32:
        raise InputError("export: load the learner with device='cpu', precision='fp32', as the file computes.")


def without_caches(method: Method) -> AbstractContextManager[None]:
    """Context in which a method computes everything."""
    return nullcontext() if method.frozen is None else method.frozen.without_caches()


def reason_of(error: BaseException) -> str:
    """The first sentence of the error of an exporter, or of the error behind it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason is given")
    return f"{type(error).__name__}: {line[:300].rstrip('.')}."


def _compared(run: Run, images: Tensor, want: Tensor, method: str, to: str) -> float:
    """Largest difference of the scores of a file, in batches of :data:`BATCH_SIZES`, see :func:`largest_difference`."""
    worst = 0.0
    for size in BATCH_SIZES:
        try:
            got = torch.cat([run(images[rows]) for rows in _batches(len(images), size)])
        except Exception as error:  # of any kind: sizes of a trace, operations that a runtime lacks
            raise InputError(
                f"export: the scores of {method} cannot be computed by {to} in batches of {size}, but from a batch of "
                f"{TRACED} alone: {reason_of(error)}"
            ) from error
        if got.shape != want.shape:
            raise InputError(
                f"export: {method} as {to} must give {tuple(want.shape)} scores of {len(images)} images in batches of "
                f"{size}, got {tuple(got.shape)}: what it computes for each image depends on their number."
            )
        difference = largest_difference(got, want)
        if not difference <= TOLERANCE:
            raise InputError(
                f"export: the scores of {method} as {to} in batches of {size} differ from those of PyTorch by "
                f"{difference:.1e} of the best score; at most {TOLERANCE:.0e} is allowed."
            )
        worst = max(worst, difference)
    return worst


def largest_difference(got: Tensor, want: Tensor) -> float:
    """Largest difference of a score, as a share of the largest best score of an image, or of the score if it is larger.

    Methods that infer a task lower the classes of other tasks by a large number. As a share of that number, a
    difference between the classes that compete would look like nothing.

    Args:
        got: scores (B, C).
        want: scores (B, C) to compare with.
    """
    best = want.amax(1).abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((got - want).abs() / want.abs().maximum(best)).max())


def _batches(n: int, size: int) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, n, size))
