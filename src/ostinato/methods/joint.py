"""Joint training on the data of all tasks: the upper bound.

After each task the model is trained on all data seen so far. Results record ``data_seen: all``, since it breaks the
rule of no old data on purpose.

Differences from the literature: most papers train once on all classes and report one number. Here the bound is
measured after every task, continuing from the weights of the task before (``restart=true`` starts each task from the
pre-trained weights and costs no more). Compare the last value.
"""

from __future__ import annotations

from typing import Literal

import torch

from ostinato.backbones import Backbone
from ostinato.methods.base import LearnTask
from ostinato.methods.finetune import Finetune
from ostinato.nn import TaskHeads
from ostinato.registry import register


@register("joint")
class Joint(Finetune):
    """Train on the data of all tasks so far.

    Args:
        backbone: the encoder.
        scope: "all" trains the backbone and the head, "head" the head alone.
        restart: start every task from the pre-trained weights and a fresh head.
    """

    data_seen = "all"

    def __init__(self, backbone: Backbone, *, scope: Literal["all", "head"] = "all", restart: bool = False) -> None:
        super().__init__(backbone, scope=scope)
        self.restart = restart
        self._pretrained = {k: v.clone() for k, v in backbone.state_dict().items()} if restart else {}

    def begin_task(self, task: LearnTask) -> None:
        """Add rows of the head; with ``restart``, reset the model."""
        super().begin_task(task)
        if self.restart:
            self.backbone.load_state_dict(self._pretrained)
            self.head = TaskHeads(self.backbone.dim, freeze_old=False)
            with torch.no_grad():
                for size in self.task_sizes.tolist():
                    self.head.grow(size, device=self.device)
