"""Detection of diverged training: exploding losses, numbers that are not finite, missing gradients."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn.utils import get_total_norm

from ostinato.errors import OstinatoError
from ostinato.methods.base import Recipe
from ostinato.training.callbacks import Callback, Seen

FACTOR = 100.0
"""A loss explodes at this multiple of the first loss of its stage, or of 1 if that is larger."""

LARGE = 1000.0
"""Upper bound of a sound first loss; a larger one follows a stage that diverged."""

HUGE = 100.0
"""Upper bound of the root mean square of sound parameters; that of layers, prompts and keys is around 1 or below."""


class DivergedError(OstinatoError):
    """Training diverged for good, or in a way at which ``train.on_divergence`` stops it."""


class Guard:
    """Checks every step of a stage, and warns or stops.

    All processes check the same sums, so they warn and stop together.

    Args:
        where: the stage in words, "task 1, stage 'fit'".
        recipe: of the stage.
        callback: receives warnings.
        params: trained parameters.
        fixed: whether ``train.*`` leaves the recipe unchanged.
        stop: whether an explosion stops training.
        seen: observations of the steps before a restart.
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
        """Check a step, counted from 1, before the optimiser takes it.

        Raises:
            DivergedError: if a loss term or gradient norm is not finite, or the loss explodes under ``stop``.
        """
        at = f"{self.where}, step {step}"
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(f"{at}: the loss term {name!r} is not a finite number ({value}). {self._advice()}")
        for norm in norms:
            if not math.isfinite(norm):
                raise DivergedError(f"{at}: the gradient's norm is not a finite number ({norm}). {self._advice()}")
        loss = sum(losses.values())
        first = loss if self.seen.first is None else self.seen.first
        exploded = loss > FACTOR * min(max(1.0, first), LARGE)
        if exploded and not self.seen.exploded:
            before = "" if self.seen.first is None else f" after {first:.3g} in the first step"
            self._exploded(f"{at}: the loss explodes, to {loss:.3g}{before}.")
        self.seen = Seen(first, self.seen.reached or any(norms), self.seen.exploded or exploded)

    def close(self) -> None:
        """Check the parameters after the last step, whose effect no loss shows.

        Raises:
            DivergedError: if parameters are not finite, or explode under ``stop``.
        """
        norm = get_total_norm([p.detach() for p in self._params]).item()
        if not math.isfinite(norm):
            raise DivergedError(
                f"{self.where}: the norm of the trained parameters is not a finite number ({norm}) after the last "
                f"step. {self._advice()}"
            )
        size = norm / math.sqrt(max(1, sum(p.numel() for p in self._params)))
        if size > HUGE and not self.seen.exploded:
            self._exploded(
                f"{self.where}: the trained parameters explode, to {size:.3g} in their root mean square after the last "
                "step."
            )
        if not self.seen.reached:
            self._callback.on_warning(
                f"{self.where}: no gradient reached the trained parameters, so nothing was learned there. The loss "
                "does not depend on them, or is constant, as over a single class."
            )

    def _exploded(self, text: str) -> None:
        text = f"{text} {self._advice()}"
        if self.stop:
            raise DivergedError(f"{text} With train.on_divergence=warn training goes on.")
        self._callback.on_warning(text)

    def _advice(self) -> str:
        lr, clip = self.recipe.lr, self.recipe.clip
        if self.fixed:
            return f"Lower train.lr of the stages before, or the method's rate of this one ({lr:g})."
        if clip is not None:
            return f"Lower train.lr (now {lr:g}) or train.clip (now {clip:g})."
        return f"Lower train.lr (now {lr:g}), or set train.clip."
