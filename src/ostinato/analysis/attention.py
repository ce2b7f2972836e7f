"""Where the model looks: attention of what is read out to the patches of an image, layer by layer.

For each image alone the method computes its scores while the blocks are watched. What counts is the last call of each
layer, which belongs to the prediction; passes that only choose prompts or infer a task come before. The weights are
then computed anew from the states that entered the layer, under the very edits of that call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
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
"""Images in one picture."""


@dataclass
class Watched:
    """The last calls of a prediction.

    Attributes:
        calls: layer to the state (..., N, D) that entered it, the mask of its tokens, its edit, and the positions it
            computed.
        at: positions that were averaged to the feature, within those that the last layer computed; None for the
            model's own read-out.
    """

    calls: dict[int, tuple[Tensor, Tensor | None, Edit | None, slice | None]] = field(default_factory=dict)
    at: slice | None = None


@contextmanager
def watching(method: Method) -> Iterator[Watched]:
    """Watch every layer and the read-out; nothing of it is left afterwards, also where an error passes through.

    Cached features and states are not used meanwhile, because a layer that is not run cannot be watched.
    """
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
        # The read-out is no module and has no hooks: the object's own attribute goes before its class's.
        backbone.__dict__["pool"] = pool
        with method.frozen.without_caches() if method.frozen is not None else nullcontext():
            yield seen
    finally:
        backbone.__dict__.pop("pool", None)
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Attention:
    """What one image's prediction attended to.

    Attributes:
        label: the predicted class.
        task: that it belongs to.
        patches: weights (L, H, rows, columns).
        cls: weight of the CLS token (L, H).
        prefix: weight of all prefix positions and inserted prompts (L, H); the three sum to 1.
    """

    label: int
    task: int
    patches: Tensor
    cls: Tensor
    prefix: Tensor


@torch.inference_mode()
def attend(learner: Learner, image: Tensor) -> Attention:
    """Attention of the read-out tokens of an image that went through ``eval_transform``, (3, S, S) uint8.

    Where the feature is a mean over several tokens, so are the weights. Where a method runs an image under every task
    at once, those of the predicted class's task are taken.

    Raises:
        InputError: if the prediction did not pass through every layer once with every task.
    """
    method, backbone = learner.method, learner.method.backbone
    if not isinstance(backbone, VisionBackbone):
        raise InputError("attention: is drawn over the patches of images; this run has learned texts.")
    with watching(method) as seen:
        label = int(learner.scores(image[None]).argmax(1))
    task = int(method.task_of_class[label])
    side = backbone.preprocess.size // backbone.patch
    patches, cls, prefix = [], [], []
    last = len(backbone.encoder.blocks) - 1
    if missing := set(range(last + 1)) - set(seen.calls):
        raise InputError(f"attention: the prediction of {method.name} did not pass layer {min(missing)}.")
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
                    f"attention: layer {layer} of {method.name} was last run under {len(weights)} of "
                    f"{method.n_tasks} tasks at once; only all or one can be shown."
                )
            weights = weights[task]
        weights = weights[0].cpu()  # (H, P + N): prefix, CLS, inserted prompts, patches
        first = weights.shape[-1] - n
        patches.append(weights[:, -side * side :].unflatten(-1, (side, side)))
        cls.append(weights[:, first])
        prefix.append(weights[:, :first].sum(-1) + weights[:, first + 1 : -side * side].sum(-1))
    return Attention(label, task, torch.stack(patches), torch.stack(cls), torch.stack(prefix))


def _positions(n: int, read: slice | None, at: slice | None, readout: str) -> slice:
    """Which of ``n`` tokens the feature is read from."""
    computed = range(n)[read] if read is not None else range(n)
    own = {"cls": computed[:1], "mean": computed[1:], "cls+mean": computed}
    chosen = computed[at] if at is not None else own[readout]
    return slice(chosen.start, chosen.stop)


def find(subject: Subject) -> Findings:
    """Attention for each of the subject's images."""
    learner, head = subject.learner, subject.head
    heads = subject.method.backbone.arch.heads
    if not 1 <= len(subject.images) <= MOST:
        raise InputError(f"attention: give 1 to {MOST} image files after the kind, got {len(subject.images)}.")
    if head is not None and not 0 <= head < heads:
        raise InputError(f"head={head}: must lie in [0, {heads - 1}], the heads of the backbone.")
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
            rows.append((str(file), name, found.task, layer, shown, *shares, *weights.flatten().tolist()))
    names = [f"patch_{i}_{j}" for i in range(side) for j in range(side)]
    columns = ("image", "predicted", "task", "layer", "head", "prefix_share", "cls_share", *names)
    which = "mean over heads" if head is None else f"head {head}"

    def draw(path: Path) -> None:
        attention_maps(
            looked, path, f"Attention to the patches: {subject.title}",
            f"of what is read out, {which}; brightest is each map's largest; below: share that patches get in all",
        )  # fmt: skip

    return Findings(columns, rows, draw)


ANALYSIS = Analysis(
    "attention",
    "attention of the read-out to the patches of given images, layer by layer",
    lambda method: hasattr(method.backbone, "patch"),
    find,
    takes=("images", "head"),
)
