"""Attention of the read-out tokens to the patches of an image, layer by layer.

The method scores each image alone while hooks record the calls of the blocks. The last call of each layer belongs to
the prediction; earlier ones select prompts or infer a task. The attention weights are recomputed from the recorded
states and edits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from ostinato.analysis.base import Analysis, Findings, Subject
from ostinato.backbones import Edit, VisionBackbone
from ostinato.backbones.encoder import Block
from ostinato.errors import InputError
from ostinato.learner import Learner
from ostinato.methods.base import Method
from ostinato.report.figures import Looked, attention_maps
from ostinato.streams.decode import decode
from ostinato.training.precision import compute

MOST = 24
"""Most images in a figure."""


@dataclass
class Watched:
    """Last calls of a prediction.

    Attributes:
        calls: by layer, the input state (..., N, D), the token mask, the edit, and the computed positions.
        at: positions that were averaged to the feature, within those that the last layer computed; None for the
            read-out of the model.
    """

    calls: dict[int, tuple[Tensor, Tensor | None, Edit | None, slice | None]] = field(default_factory=dict)
    at: slice | None = None


@contextmanager
def watching(method: Method) -> Iterator[Watched]:
    """Record the calls of every layer and the read-out within the block, without caches, which would skip layers."""
    backbone, seen = method.backbone, Watched()
    handles = []

    def watch(layer: int) -> Any:
        def hook(_: Any, args: tuple[Any, ...], more: dict[str, Any]) -> None:
            given = dict(zip(("h", "mask", "edit", "read"), args, strict=False)) | more
            seen.calls[layer] = given["h"], given.get("mask"), given.get("edit"), given.get("read")

        return hook

    plain = backbone.pool

    def pool(tokens: Any, at: slice | None = None) -> Tensor:
        seen.at = at
        return plain(tokens, at)

    try:
        for layer, block in enumerate(backbone.encoder.blocks):
            handles.append(block.register_forward_pre_hook(watch(layer), with_kwargs=True))
        # The read-out is no module and has no hooks; an instance attribute shadows the method.
        backbone.__dict__["pool"] = pool
        with method.frozen.without_caches() if method.frozen is not None else nullcontext():
            yield seen
    finally:
        backbone.__dict__.pop("pool", None)
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Attention:
    """Attention of a prediction for an image; the weights sum to 1 per layer and head.

    Attributes:
        label: predicted class.
        task: task of the class.
        patches: weights of patches (L, H, rows, columns).
        cls: weight of the CLS token (L, H).
        prefix: weight of prefix positions and inserted prompts (L, H).
    """

    label: int
    task: int
    patches: Tensor
    cls: Tensor
    prefix: Tensor


@torch.inference_mode()
def attend(learner: Learner, image: Tensor) -> Attention:
    """Compute the attention of the read-out tokens for an image (3, S, S) uint8 after ``eval_transform``.

    If the feature is a mean over tokens, so are the weights. If the method runs all tasks at once, the weights are for
    the task of the predicted class.

    Raises:
        InputError: if the run learned texts, or a layer was skipped or run with some of the tasks.
    """
    method, backbone = learner.method, learner.method.backbone
    if not isinstance(backbone, VisionBackbone):
        raise InputError("attention needs a run that learned images; this one learned texts.")
    with watching(method) as seen:
        label = int(learner.scores(image[None]).argmax(1))
    task = int(method.task_of_class[label])
    side = backbone.preprocess.size // backbone.patch
    patches, cls, prefix = [], [], []
    last = len(backbone.encoder.blocks) - 1
    if missing := set(range(last + 1)) - set(seen.calls):
        raise InputError(f"attention: a prediction must run every layer; {method.name} skips layer {min(missing)}.")
    for layer, module in enumerate(backbone.encoder.blocks):
        h, mask, edit, _ = seen.calls[layer]
        n = h.shape[-2]
        block = cast(Block, module)
        at = _positions(n, seen.calls[last][3], seen.at, backbone.readout)
        with compute(method, learner.settings.device, learner.settings.dtype):
            weights = block.attn.weights(block.attention_input(h), mask, edit or Edit(), at).float().mean(-2)
        if weights.ndim == 4:  # (T, 1, H, P + N)
            if len(weights) != method.n_tasks:
                raise InputError(
                    f"attention: a layer must run one task or all at once; layer {layer} of {method.name} ran "
                    f"{len(weights)} of {method.n_tasks}."
                )
            weights = weights[task]
        weights = weights[0].cpu()  # (H, P + N): prefix, CLS, inserted prompts, patches
        first = weights.shape[-1] - n
        patches.append(weights[:, -side * side :].unflatten(-1, (side, side)))
        cls.append(weights[:, first])
        prefix.append(weights[:, :first].sum(-1) + weights[:, first + 1 : -side * side].sum(-1))
    return Attention(label, task, torch.stack(patches), torch.stack(cls), torch.stack(prefix))


def _positions(n: int, read: slice | None, at: slice | None, readout: str) -> slice:
    """Positions of the read-out tokens among ``n``."""
    computed = range(n)[read] if read is not None else range(n)
    own = {"cls": computed[:1], "mean": computed[1:], "cls+mean": computed}
    chosen = computed[at] if at is not None else own[readout]
    return slice(chosen.start, chosen.stop)


def find(subject: Subject) -> Findings:
    """Compute the attention for each image."""
    learner, head = subject.learner, subject.head
    heads = subject.method.backbone.arch.heads
    if not 1 <= len(subject.images) <= MOST:
        raise InputError(f"attention: give 1 to {MOST} image files, got {len(subject.images)}.")
    if head is not None and not 0 <= head < heads:
        raise InputError(f"head must lie in [0, {heads - 1}], the heads of the backbone, got {head}.")
    rows: list[tuple[Any, ...]] = []
    looked: list[Looked] = []
    side = 0
    for file in subject.images:
        image = learner.eval_transform(decode(file, str(file)))
        found = attend(learner, image)
        patches, cls, prefix = (
            t.mean(1) if head is None else t[:, head] for t in (found.patches, found.cls, found.prefix)
        )
        name, side = learner.class_names[found.label], patches.shape[-1]
        looked.append(Looked(image.permute(1, 2, 0).numpy(), file.name, name, patches.numpy()))
        shown = "mean" if head is None else head
        for layer, weights in enumerate(patches):
            shares = float(prefix[layer]), float(cls[layer])
            rows.append((str(file), name, found.task + 1, layer, shown, *shares, *weights.flatten().tolist()))
    names = [f"patch_{i}_{j}" for i in range(side) for j in range(side)]
    columns = ("image", "predicted", "task", "layer", "head", "prefix_share", "cls_share", *names)
    which = "mean over heads" if head is None else f"head {head}"

    subtitle = f"of the read-out tokens, {which}; each map scaled to its maximum; below: total share of the patches"
    draw = partial(attention_maps, looked, title=f"Attention to the patches: {subject.title}", subtitle=subtitle)
    return Findings(columns, rows, draw)


ANALYSIS = Analysis(
    "attention",
    "attention of the read-out to the patches of given images, layer by layer",
    lambda method: hasattr(method.backbone, "patch"),
    find,
    takes=("images", "head"),
)
