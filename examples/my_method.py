"""One prefix per layer for all tasks, trained on each in turn.

Differences from the paper: there is none.
"""

import torch
from torch import nn

import ostinato
from ostinato import Edit, LayerPlan, TaskHeads, check_layers, prefix_from


@ostinato.register("one_prefix")
class OnePrefix(ostinato.Method):
    """Prefixes that every task trains further.

    Args:
        backbone: the frozen encoder.
        layers: those with a prefix, counted from 0.
        length: positions of a prefix.
    """

    recipe = ostinato.Recipe(epochs=2, lr=0.01)

    def __init__(self, backbone, *, layers: tuple[int, ...] = (0, 1, 2), length: int = 5):
        super().__init__(backbone)
        self.layers = check_layers("layers", layers, backbone.arch.depth)
        self.prefixes = nn.Parameter(torch.empty(len(layers), 1, 2, length, backbone.dim).uniform_(-1, 1))
        self.head = TaskHeads(backbone.dim)

    def features(self, x):
        heads = self.backbone.arch.heads
        edits = {layer: Edit(prefix=prefix_from(p, heads)) for layer, p in zip(self.layers, self.prefixes)}
        return self.backbone(x, LayerPlan(edits))

    def begin_task(self, task):
        super().begin_task(task)
        self.head.grow(len(task.classes), device=self.device)

    def loss(self, x, y):
        return {"ce": self.head.loss(self.features(x), y)}

    def scores(self, x):
        return self.head(self.features(x))
