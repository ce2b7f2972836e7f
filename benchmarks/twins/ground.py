"""Images, order of batches, weights and scores of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ostinato
from ostinato import Learner
from ostinato.learner.spec import BackboneSpec
from ostinato.training.loader import fixed_batches, training_batches

NAME = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
DIM, DEPTH, HEADS = 192, 12, 3


@dataclass(frozen=True)
class Sizes:
    """Options of a comparison, on the command line too."""

    data: str
    weights: str
    size: int = 96
    step: int = 10
    passes: int = 3
    batch: int = 25
    device: str = "cpu"

    @property
    def scaled_rate(self) -> float:
        """The rate of the prompt methods, 0.03 for batches of 256."""
        return 0.03 * self.batch / 256


class Ground:
    """Tasks of ``step`` classes in the order of the data, with pixels in [-1, 1].

    Attributes:
        sizes: options.
        n: number of tasks.
        step: classes of a task.
        device: of the batches.
    """

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.sizes, self.seed, self.step = sizes, seed, sizes.step
        self.device = torch.device(sizes.device)
        spec = BackboneSpec(NAME, sizes.weights, size=sizes.size)
        self.learner = Learner("simplecil", backbone=spec, device="cpu", precision="fp32")
        self.stream = ostinato.stream(sizes.data, first=self.step, step=self.step, validation=0.0, seed=seed)
        self.n = len(self.stream)

    def steps(self, task: int) -> int:
        """Batches of a pass."""
        return -(-len(self.stream.task(task).train) // self.sizes.batch)

    def batches(self, task: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of a pass, those of our run with this seed."""
        found = training_batches(
            self.stream.task(task).train.with_transform(self.learner.eval_transform), self.sizes.batch,
            seed=self.seed, position=(task, 0), epoch=epoch, start=0, device=self.device,
        )  # fmt: skip
        for x, y, _ in found:
            yield pixels(x), y

    def plain(self, task: int, classes: list[int] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Training images in order, of some classes."""
        data = self.stream.task(task).train
        rows = [i for i, label in enumerate(data.labels) if classes is None or int(label) in classes]
        yield from self._fixed(data, rows)

    def test(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Test images in order."""
        data = self.stream.test(task)
        yield from self._fixed(data, list(range(len(data))))

    def _fixed(self, data: ostinato.LabeledDataset, rows: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        seen = data.with_transform(self.learner.eval_transform)
        for x, y in fixed_batches(seen, 250, device=self.device, order=rows):
            yield pixels(x), y

    def weights(self) -> dict[str, Tensor]:
        """The encoder's weights under timm's names, with position embeddings of this size."""
        renamed = {}
        for key, value in self.learner.method.backbone.state_dict().items():
            key = key.replace("encoder.", "").replace("patch_embed.", "patch_embed.proj.")
            renamed[key] = value.clone()
        return renamed


def pixels(x: Tensor) -> Tensor:
    """Images in uint8 as floats in [-1, 1], as the weights expect."""
    return (x.float() / 255 - 0.5) / 0.5


def fill(model: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Load weights and list the parameters that they lack.

    Raises:
        ValueError: if the model lacks one of the weights.
    """
    found = model.load_state_dict(state, strict=False)
    if found.unexpected_keys:
        raise ValueError(f"the public model has no {', '.join(found.unexpected_keys)}")
    return found.missing_keys


class Scores:
    """Accuracy on the test images of all tasks seen, after each task."""

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.accuracies: list[float] = []

    @torch.no_grad()
    def add(self, task: int, predict: Callable[[Tensor], Tensor]) -> None:
        """Score ``predict``, from images to classes, after a task."""
        right = torch.cat([predict(x) == y for t in range(task + 1) for x, y in self.ground.test(t)])
        self.accuracies.append(float(right.float().mean()))
        print(f"task {task + 1}: {100 * self.accuracies[-1]:.1f} %", flush=True)
