"""Methods that adapt the encoder to the first task, and keep sums over features from then on."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from ostinato.methods.base import LearnTask, Losses, Stage
from ostinato.methods.parts.adaptations import Adaptation
from ostinato.methods.parts.banks import Bank
from ostinato.methods.parts.closed_form import OnSums
from ostinato.nn.proxy import CosineProxy


class FirstSession(OnSums):
    """Base of methods with first-session adaptation.

    Panos, Kobe, Reino, Aljundi, Turner: "First Session Adaptation: A Strong Replay-Free Baseline for Class-Incremental
    Learning", ICCV 2023, https://arxiv.org/abs/2303.13199. Edits of the encoder learn the first task through a cosine
    classifier, which is then dropped, and are frozen.

    Attributes:
        bank: the edits, made by the subclass.
        proxy: the classifier of the first task, made by the subclass.
        adapts: whether the method adapts at all.
    """

    bank: Bank | Adaptation
    proxy: CosineProxy
    adapts: bool = True

    def begin_task(self, task: LearnTask) -> None:
        """Begin the classifier of the first task; freeze the edits in later ones."""
        super().begin_task(task)
        if self.adapts and task.index == 0:
            self.bank.begin_task(self.device)
        adapts = self.adapts_to(task)
        self.proxy.reset(len(task.classes) if adapts else 0)
        self._train(adapts)

    def adapts_to(self, task: LearnTask) -> bool:
        """Whether a task trains: the first one, if it has classes to tell apart."""
        return self.adapts and task.index == 0 and len(task.classes) > 1

    def trained(self) -> list[nn.Parameter]:
        """Parameters that the first task trains."""
        return [*self.bank.parameters(), *self.proxy.parameters()]

    def _train(self, on: bool) -> None:
        for p in self.trained():
            p.requires_grad_(on)

    def stages(self, task: LearnTask) -> Iterable[Stage]:
        """Adapt to the first task; train nothing in later ones."""
        if not self.adapts_to(task):
            return []
        return [Stage(self.loss, name="adapt", params=self.trained(), prepare=lambda: self.prepare(task))]

    def prepare(self, task: LearnTask) -> None:
        """Prepare the training of the first task."""

    def loss(self, x: Tensor, y: Tensor) -> Losses:
        """Cross-entropy over the first task's classes."""
        return {"ce": F.cross_entropy(self.proxy(self.adapted(x)), y)}

    def adapted(self, x: Tensor) -> Tensor:
        """Features (B, D) of training samples under the edits."""
        return self.backbone(x, self.bank.plan(0))

    def end_task(self, task: LearnTask) -> None:
        """Drop the classifier of the first task, and add the task's samples to the sums."""
        self.proxy.reset(0)
        self._train(False)
        super().end_task(task)
