"""Test case of a contract check: a method on a tiny encoder."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ostinato.backbones import Backbone
from ostinato.contract.harness import SETTINGS, Steps, inputs_of, learn_task_of, make, settings_on
from ostinato.contract.tiny_models import BACKBONES, Kind, tiny_stream
from ostinato.lookup import executed_anew
from ostinato.methods.base import Method
from ostinato.streams import TaskStream
from ostinato.training.loop import Settings, learn_task
from ostinato.training.precision import prepare


class ContractViolation(AssertionError):
    """Failure of a check."""


class DoesNotApply(Exception):
    """Reason why a check does not apply to a method."""


@dataclass(frozen=True)
class Case:
    """A method on a kind of tiny encoder.

    Attributes:
        method: its class.
        kind: of the encoder.
        options: of the method.
        device: of the computation.
        depth: layers of the encoder; None for those of its kind.
    """

    method: type[Method]
    kind: Kind
    options: dict[str, Any] = field(default_factory=dict)
    device: torch.device = SETTINGS.device
    depth: int | None = None
    _after: list[Method] = field(default_factory=list, init=False, repr=False, compare=False)
    _steps: list[int] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def stream(self) -> TaskStream:
        """Five classes in three tasks, the last one of a single class."""
        return tiny_stream(self.kind)

    @cached_property
    def settings(self) -> Settings:
        """Settings of the training: four steps for two classes, so that two of them are inside an epoch."""
        settings = settings_on(self.device)
        return replace(settings, overrides={**(settings.overrides or {}), "batch_size": 12})

    @cached_property
    def inputs(self) -> Tensor:
        """Test samples of all tasks."""
        return self.inputs_upto(len(self.stream))

    def inputs_upto(self, n_tasks: int) -> Tensor:
        """Test samples of the first tasks."""
        return inputs_of(self.stream, n_tasks, self.device)

    @cached_property
    def learned(self) -> Method:
        """The method after all tasks; checks must not change it."""
        return self.after(len(self.stream))

    def backbone(self) -> Backbone:
        """A new encoder, always of the same weights."""
        make_backbone = BACKBONES[self.kind]
        return make_backbone() if self.depth is None else make_backbone(depth=self.depth)

    def make(self) -> Method:
        """The method before the first task."""
        return self._placed(make(self.method, self.kind, self.backbone(), **self.options))

    def _placed(self, method: Method) -> Method:
        prepare(method, self.device, self.settings.dtype)
        return method

    def after(self, n_tasks: int) -> Method:
        """A copy of the method after the first tasks, which checks may change."""
        self._learn(n_tasks)
        return _copied(self._after[n_tasks])

    def steps(self, i: int) -> int:
        """Steps of training in task ``i``."""
        self._learn(i + 1)
        return self._steps[i]

    def _learn(self, n_tasks: int) -> None:
        """Train the method of :meth:`after` once for all checks."""
        if not self._after:
            self._after.append(self.make())
        for i in range(len(self._after) - 1, n_tasks):
            method, steps = _copied(self._after[i]), Steps()
            self.learn_task(method, i, callback=steps)
            self._after.append(method)
            self._steps.append(steps.n)

    def learn_task(self, method: Method, i: int, **more: Any) -> None:
        """Train a method on task ``i``; ``more`` goes to :func:`ostinato.training.loop.learn_task`."""
        learn_task(method, learn_task_of(method, self.stream, i), self.settings, **more)

    def reloaded(self, state: dict[str, Tensor]) -> Method:
        """A new method, from a new execution of its file, with copies of learned tensors."""
        reloaded = self._placed(make(executed_anew(self.method), self.kind, self.backbone(), **self.options))
        reloaded.load_learned_state({k: v.clone() for k, v in state.items()})
        return reloaded


def _copied(method: Method) -> Method:
    """A copy of a method, on the same encoder if it is frozen, which takes most of the time to copy."""
    shared = {} if method.trains_backbone else {id(method.backbone): method.backbone}
    return deepcopy(method, shared)


def check_same(name: str, got: Tensor, want: Tensor, *, exact: bool = False) -> None:
    """Compare scores, bit by bit or up to the rounding of sums in another order.

    Raises:
        ContractViolation: with the largest difference and its sample.
    """
    if got.shape != want.shape:
        raise ContractViolation(f"{name}: the shape is {tuple(got.shape)}, but it was {tuple(want.shape)}.")
    close = torch.equal(got, want) if exact else torch.allclose(got, want, rtol=1e-4, atol=1e-5)
    if not close:
        apart = (got - want).abs().flatten(1).amax(1)
        worst = int(apart.argmax())
        tail = ", and must not differ in one bit" if exact else ""
        raise ContractViolation(f"{name}: scores of sample {worst} differ by {apart[worst]:.3g}{tail}.")
