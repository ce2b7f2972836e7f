"""Probabilities of a learner's answers, fitted on samples that it did not train on.

After every task, a learner scores the held-out samples of all tasks again that it has learned since it was made or
loaded. Of earlier ones, it has sums alone.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ostinato.learner.learning import whole_task
from ostinato.nn.calibration import Temperature
from ostinato.streams import LabeledDataset
from ostinato.training.callbacks import Callback

if TYPE_CHECKING:
    from ostinato.learner.learner import Learner

PREFIX = "certainty/"
"""Of its tensors beside those of a method, whose names have no slash."""


class Certainty(nn.Module):
    """Statistics of held-out samples under the newest model.

    Attributes:
        temperature: of the probabilities.
        earlier: the part of samples that are not in hand any more, under the model of their time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.temperature = Temperature()
        self.earlier = Temperature()

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, to save."""
        return {PREFIX + key: value for key, value in self.state_dict().items()}

    def close(self) -> None:
        """Let go of all samples so far: what they gave stays as it is."""
        self.earlier = copy.deepcopy(self.temperature)

    def merge(self, other: Certainty) -> None:
        """Add the statistics of another learner."""
        self.temperature.merge(other.temperature)
        self.close()


def certainty_in(state: dict[str, Tensor]) -> tuple[Certainty | None, dict[str, Tensor]]:
    """Split the tensors of a learner into its certainty, None if there is none, and those of the method."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    others = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    if not own:
        return None, others
    certainty = Certainty().to(next(iter(own.values())).device)
    certainty.load_state_dict(own)
    return certainty, others


@torch.no_grad()
def refit(certainty: Certainty, learner: Learner, held_out: LabeledDataset, callback: Callback) -> float:
    """Fit the probabilities of a learner to all held-out samples in hand, and return the seconds spent.

    Nothing is selected by them: the best class stays the same at every temperature.
    """
    began = time.perf_counter()
    temperature = copy.deepcopy(certainty.earlier)
    if len(held_out):
        scores, labels = whole_task(learner, held_out, callback).extract_features(learner.raw_scores)
        usable = scores.isfinite().all(1)  # an evaluation and a prediction refuse the others
        groups = learner.answers()
        groups = torch.arange(scores.shape[1]) if groups is None else groups
        temperature.add(scores[usable], labels[usable], groups.to(scores.device))
    certainty.temperature = temperature
    return time.perf_counter() - began
