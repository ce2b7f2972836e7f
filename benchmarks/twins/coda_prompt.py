"""Public code of CODA-Prompt (GT-RIPL)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from benchmarks.twins.ground import DEPTH, DIM, HEADS, Ground, Scores, fill
from benchmarks.twins.patches import Passes, freeze, module, prepare

COMPONENTS, LENGTH, RATE = 10, 8, 0.001


def run(ground: Ground, code: Path) -> Scores:
    """Train and score all tasks."""
    prepare(code, ground.device)
    module("models").__path__ = [str(code / "models")]
    import learners.prompt
    from models import vit, zoo

    classes = ground.step * ground.n
    pool = [COMPONENTS * ground.n, LENGTH, 0.0]

    class Net(nn.Module):
        forward = zoo.ViTZoo.forward

        def __init__(self) -> None:
            super().__init__()
            self.feat = vit.VisionTransformer(
                img_size=ground.sizes.size, patch_size=16, embed_dim=DIM, depth=DEPTH, num_heads=HEADS
            )
            fill(self.feat, ground.weights())
            self.last = nn.Linear(DIM, classes)
            self.prompt = zoo.CodaPrompt(DIM, ground.n, pool, key_dim=DIM)
            self.prompt_flag, self.task_id = "coda", None

    class Learner(learners.prompt.CODAPrompt):
        def create_model(self) -> nn.Module:
            net = Net()
            freeze(net, "feat")
            return net.to(ground.device)

        def update_model(self, x: Tensor, y: Tensor) -> Any:
            """A quarter of a cosine per step, as here."""
            for group in self.optimizer.param_groups:
                group["lr"] = RATE * math.cos(math.pi / 2 * self.step / self.steps)
            self.step += 1
            return super().update_model(x, y)

    class Triples(Passes):
        def __iter__(self) -> Any:
            for x, y in super().__iter__():
                yield x, y, None

    learner = Learner({
        "prompt_param": [ground.n, pool], "out_dim": classes, "overwrite": True, "batch_size": ground.sizes.batch,
        "tasks": None, "top_k": 1, "memory": 0, "DW": False, "gpuid": [-1], "schedule_type": "cosine",
        "schedule": [ground.sizes.passes], "optimizer": "Adam", "lr": RATE, "momentum": 0.9, "weight_decay": 0.0,
    })  # fmt: skip
    net, scores = learner.model, Scores(ground)
    for t in range(ground.n):
        if t:
            net.prompt.process_task_count()
            net.to(ground.device)
        learner.add_valid_output_dim(ground.step)
        learner.step, learner.steps = 0, ground.sizes.passes * ground.steps(t)
        learner.learn_batch(Triples(ground, t), None, "")
        net.eval()
        seen = ground.step * (t + 1)
        scores.add(t, lambda x, seen=seen: net(x)[:, :seen].argmax(1))
    return scores
