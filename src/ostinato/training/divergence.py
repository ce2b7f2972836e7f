"""Training that goes wrong: losses that explode, numbers that are not finite, gradients that reach nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.utils import get_total_norm

from ostinato.errors import OstinatoError
from ostinato.methods.base import Recipe
from ostinato.training.callbacks import Callback, Seen

FACTOR = 100.0
"""A loss explodes when it is this many times what it was at the stage's first step, or 1 where that is less."""

LARGE = 1000.0
"""More than any loss begins with: a stage that begins with more begins after training diverged before it."""

HUGE = 100.0
"""More than the root mean square of what is trained is: that of layers, prompts and keys is below or around 1."""


class DivergedError(OstinatoError):
    """Training went wrong in a way that no later step mends, or at which the user wants it to stop."""


class Guard:
    """Holds every step of a stage against what must be true of it; warns of the rest, or stops.

    All processes that share the steps see the same sums, so that they warn and stop alike.

    Args:
        where: the stage in words, "task 1, stage 'fit'".
        recipe: of the stage.
        fixed: whether the recipe is the method's, so that ``train.*`` does not change it.
        stop: whether training stops where something explodes.
        callback: is warned.
        params: that are trained.
        seen: by the steps before a restart.
    """

    def __init__(
        self,
        where: str,
        recipe: Recipe,
        callback: Callback,
        params: Sequence[Tensor],
        *,
        fixed: bool,
        stop: bool,
        seen: Seen,
    ) -> None:
        self.where, self.recipe, self.fixed, self.stop, self.seen = where, recipe, fixed, stop, seen
        self._callback, self._params = callback, params

    def check(self, step: int, losses: Mapping[str, float], norms: Sequence[float]) -> None:
        """Look at a step before the optimiser takes it.

        Args:
            step: number of the step, from 1.
            losses: the terms, over the whole batch.
            norms: of the gradients.

        Raises:
            DivergedError: if a number is not finite, or the loss explodes and training is to stop then.
        """
        at = f"{self.where}, step {step}"
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(f"{at}: the loss term {name!r} is not a finite number ({value}). {self._way_out()}")
        for norm in norms:
            if not math.isfinite(norm):
                raise DivergedError(f"{at}: the gradient's norm is not a finite number ({norm}). {self._way_out()}")
        loss = sum(losses.values())
        first = loss if self.seen.first is None else self.seen.first
        exploded = loss > FACTOR * min(max(1.0, first), LARGE)
        if exploded and not self.seen.exploded:
            before = "" if self.seen.first is None else f" after {first:.3g} in the first step"
            self._exploded(f"{at}: the loss explodes, to {loss:.3g}{before}.")
        now = Seen(first, self.seen.reached or any(norms), self.seen.exploded or exploded)
        if now != self.seen:
            self.seen = now

    def close(self) -> None:
        """Look back at the stage when its last step was taken, the effect of which no loss shows.

        Raises:
            DivergedError: if parameters are not finite, or explode and training is to stop then.
        """
        norm = get_total_norm([p.detach() for p in self._params]).item()
        if not math.isfinite(norm):
            raise DivergedError(
                f"{self.where}: the norm of the trained parameters is not a finite number ({norm}) after the last "
                f"step. {self._way_out()}"
            )
        size = norm / math.sqrt(max(1, sum(p.numel() for p in self._params)))
        if size > HUGE and not self.seen.exploded:
            self._exploded(
                f"{self.where}: the trained parameters explode, to {size:.3g} in their root mean square after the last "
                "step."
            )
        if not self.seen.reached:
            self._callback.on_warning(
                f"{self.where}: no gradient reached the trained parameters, so that nothing was learned there. The "
                "loss does not depend on them, or cannot change, as over a single class."
            )

    def _exploded(self, text: str) -> None:
        text = f"{text} {self._way_out()}"
        if self.stop:
            raise DivergedError(f"{text} With train.on_divergence=warn training goes on.")
        self._callback.on_warning(text)

    def _way_out(self) -> str:
        lr, clip = self.recipe.lr, self.recipe.clip
        if self.fixed:
            return f"Lower train.lr of the stages before, or the rate that the method has for this one ({lr:g})."
        if clip is not None:
            return f"Lower train.lr (now {lr:g}) or train.clip (now {clip:g})."
        return f"Lower train.lr (now {lr:g}), or set train.clip."
