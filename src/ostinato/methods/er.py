"""ER: experience replay from a small memory.

Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr, Ranzato: "On Tiny Episodic Memories in Continual Learning",
2019, https://arxiv.org/abs/1902.10486.

Every step takes a batch B of the task and as many samples M of the memory, and minimises the mean cross-entropy over
both, ``1/2 (CE(B) + CE(M))``. The memory is a reservoir: every sample seen has the same chance to be in it.

Differences from the paper: the memory is filled after a task instead of during it, so that the samples of the newest
task are not replayed within it. Replayed samples are not augmented. The paper trains a network from scratch with one
pass over the data; the recipe here is that of ``finetune``, for pre-trained transformers.
"""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.choices import Part
from ostinato.methods.base import LearnTask, Losses
from ostinato.methods.finetune import Finetune
from ostinato.methods.parts.memory import MEMORY, Memory
from ostinato.registry import register


@register("er")
class ER(Finetune):
    """Fine-tuning with replay of kept samples.

    Args:
        backbone: the encoder, which is trained.
        memory: kept samples: "reservoir", "random" or "herding".
    """

    data_seen = "memory"

    def __init__(self, backbone: Backbone, *, memory: Annotated[Part, MEMORY] = "reservoir") -> None:
        super().__init__(backbone)
        self.memory = Memory(backbone, MEMORY.read(memory, "method.memory"))

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over all classes seen, half of it of replayed samples from the second task on."""
        new = super().loss(x, y)["ce"]
        if not len(self.memory):
            return {"ce": new}
        old = super().loss(*self.memory.batch(len(x)))["ce"]
        return {"ce": new / 2, "replay": old / 2}

    def end_task(self, task: LearnTask) -> None:
        """Update the memory."""
        super().end_task(task)
        self.memory.update(task, self.features)
