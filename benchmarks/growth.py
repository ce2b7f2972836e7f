"""Cost of a task after many tasks: ``python -m benchmarks.growth``."""

from __future__ import annotations

import datetime
import gc
import statistics
import time
from typing import Annotated, Any

import torch
import typer

from benchmarks.cases import CLASSES, Images
from benchmarks.limits import seconds
from benchmarks.machine import PAGE, machine, markdown
from ostinato.backbones.weights import load_backbone
from ostinato.lookup import get_method
from ostinato.methods.base import LearnTask, Method
from ostinato.report.tables import replace_between
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import choose_precision, prepare

CPU = torch.device("cpu")
METHODS: dict[str, dict[str, Any]] = {
    "simplecil": {},
    "dualprompt": {},
    "cl_lora": {},
    "soft_tf": {},
    "layer_grouped": {"align": "none"},
}
HEAD = (
    "method",
    "task",
    "train s",
    "of the first",
    "ms per predicted image",
    "passes it is worth",
    "stored MB",
    "in memory MB",
)
PER_TASK = 100
"""Training images per task."""
LAST = 5
"""Number of latest tasks whose median is shown."""


class Trained:
    """A method that learns tasks of random images on the bundled backbone, with frozen weights in ``dtype``."""

    def __init__(self, name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.method: Method = get_method(name)(load_backbone(), **options)
        prepare(self.method, CPU, dtype)
        if self.method.frozen is not None:
            self.method.frozen.feature_cache = None  # every task shows the same images
        self.settings = Settings(CPU, dtype, overrides={"epochs": 1, "batch_size": 20})
        self.x = Images(PER_TASK, self.method.backbone.preprocess.size, range(CLASSES))

    def learn(self) -> float:
        """Learn a further task and return the seconds."""
        i = self.method.n_tasks
        classes = range(i * CLASSES, (i + 1) * CLASSES)
        images = Images.__new__(Images)
        images.x, images.y = self.x.x, [classes[j % CLASSES] for j in range(PER_TASK)]

        def batches(rows: list[int] | None = None) -> Any:  # noqa: ARG001 - one process takes all
            yield images.batch(PER_TASK, CPU)

        return learn_task(self.method, LearnTask(i, classes, images, batches), self.settings)

    @torch.inference_mode()
    def predict(self, n: int = 16) -> tuple[float, float]:
        """Measure seconds per image of scores, and of a plain pass."""
        self.method.eval()
        x = self.x.x[:n]
        times = [
            (seconds(lambda: self.method.scores(x), CPU), seconds(lambda: self.method.backbone(x), CPU))
            for _ in range(5)
        ]
        ours, plain = zip(*times, strict=True)
        return statistics.median(ours) / n, statistics.median(plain) / n

    def stored(self) -> int:
        """Bytes of the learned state."""
        return sum(t.numel() * t.element_size() for t in self.method.learned_state().values())

    def held(self) -> int:
        """Bytes of all tensors of the method in memory, without the backbone."""
        gc.collect()
        frozen = {id(t) for t in self.method.backbone.state_dict(keep_vars=True).values()} | {id(self.x.x)}
        seen: dict[int, int] = {}
        for t in gc.get_objects():
            if issubclass(type(t), torch.Tensor) and id(t) not in frozen:
                storage = t.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
                if t.grad is not None:
                    seen[t.grad.untyped_storage().data_ptr()] = t.grad.untyped_storage().nbytes()
        return sum(seen.values())


def compare(trained: Trained, other: Trained, tasks: int) -> tuple[float, float]:
    """Median seconds of ``tasks`` further tasks, and the ratio to the tasks of a new model from the second on.

    The two take turns, so that a slower machine is not taken for growth. The second task is the first with all parts
    of later ones.
    """
    other.learn()
    late, early = zip(*[(trained.learn(), other.learn()) for _ in range(tasks)], strict=True)
    return statistics.median(late), statistics.median(late) / statistics.median(early)


def main(
    tasks: Annotated[int, typer.Option(help="tasks of five classes")] = 200,
    only: Annotated[str, typer.Option(help="a single method")] = "",
    write: Annotated[bool, typer.Option(help="put the table into docs/performance.md")] = False,
) -> None:
    """Learn many tasks, and measure some."""
    marks = sorted({m for m in (1, 10, 20, 50, 100, 200) if m <= tasks} | {tasks})
    rows: list[tuple[str, ...]] = []
    for name, options in METHODS.items():
        if only and name != only:
            continue
        dtype = choose_precision("auto", CPU).dtype
        trained = Trained(name, options, dtype)
        began = time.perf_counter()
        for mark in marks:
            while trained.method.n_tasks < mark - LAST:
                trained.learn()
            took, ratio = compare(trained, Trained(name, options, dtype), mark - trained.method.n_tasks)
            ours, plain = trained.predict()
            rows.append(
                (name, str(mark), f"{took:.3f}", f"{ratio:.2f}" if mark > LAST else "-", f"{ours * 1e3:.2f}",
                 f"{ours / plain:.1f}", f"{trained.stored() / 1e6:.1f}", f"{trained.held() / 1e6:.1f}")
            )  # fmt: skip
            print("  ".join(rows[-1]), f" [{time.perf_counter() - began:.0f} s]", flush=True)
    text = "\n".join(
        [
            f"{machine(CPU)}; {datetime.date.today()}. Bundled backbone, {tasks} tasks of {CLASSES} classes, "
            f"{PER_TASK} images a task, one epoch, batches of 20, predictions in batches of 16, seed 0.",
            "",
            markdown(HEAD, rows),
            "",
            "```sh",
            f"python -m benchmarks.growth --tasks {tasks} --write",
            "```",
        ]
    )
    if write:
        replace_between(PAGE, "growth", text + "\n")


if __name__ == "__main__":
    typer.run(main)
