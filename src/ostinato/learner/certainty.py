"""Probabilities of a learner's answers, and the right to give none.

After every task, a learner scores the held-out samples of all tasks again that it has learned since it was made or
loaded. Of earlier ones, it has sums of probabilities, and distances.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostinato.backbones.frozen import FrozenBackbone
from ostinato.backbones.weights import load_backbone
from ostinato.errors import DataError
from ostinato.learner.learning import parts_of, whole_task
from ostinato.nn.calibration import Temperature
from ostinato.nn.growing import Growing
from ostinato.nn.typicality import Typicality
from ostinato.streams import LabeledDataset, Task
from ostinato.training.callbacks import Callback

if TYPE_CHECKING:
    from ostinato.learner.learner import Learner

PREFIX = "certainty/"
"""Of its tensors beside those of a method, whose names have no slash."""


class Certainty(Growing):
    """Statistics of held-out samples under the newest model, and of the plain features of training samples.

    Args:
        dim: width D of plain features.

    Attributes:
        temperature: of the probabilities.
        typicality: of inputs among the classes.
        earlier: probabilities of held-out samples that are not in hand any more, under the model of their time.
        earlier_distances: their distances.
        encoder: the plain encoder, for a method that trains its own; loaded when it is needed.
    """

    earlier_distances: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.temperature, self.earlier = Temperature(), Temperature()
        self.typicality = Typicality(dim)
        self.register_buffer("earlier_distances", torch.zeros(0, dtype=torch.float64))
        self.encoder: FrozenBackbone | None = None

    def state(self) -> dict[str, Tensor]:
        """Tensors by name, to save."""
        return {PREFIX + key: value for key, value in self.state_dict().items()}

    def close(self) -> None:
        """Let go of all held-out samples so far: what they gave stays as it is."""
        self.earlier = copy.deepcopy(self.temperature)
        self.earlier_distances = self.typicality.distances

    def merge(self, other: Certainty, labels: Tensor) -> None:
        """Add the statistics of another learner, whose classes have the given numbers here."""
        self.temperature.merge(other.temperature)
        self.typicality.merge(other.typicality, labels)
        self.close()

    def relabel(self, labels: Tensor) -> None:
        """Give every class a new number; classes of one number are joined, -1 drops a class."""
        self.typicality.relabel(labels)
        self.close()


def certainty_in(state: dict[str, Tensor], dim: int) -> tuple[Certainty | None, dict[str, Tensor]]:
    """Split the tensors of a learner into its certainty, None if there is none, and those of the method.

    Raises:
        RuntimeError: if tensors are missing, unknown, of wrong shapes or not finite.
    """
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    others = {key: value for key, value in state.items() if not key.startswith(PREFIX)}
    if not own:
        return None, others
    certainty = Certainty(dim).to(next(iter(own.values())).device)
    if odd := [key for key, value in own.items() if not bool(value.isfinite().all())]:
        raise RuntimeError(f"{odd[0]} must hold finite numbers")
    certainty.load_state_dict(own)
    certainty.typicality.check()
    if certainty.earlier_distances.ndim != 1:
        raise RuntimeError(f"earlier_distances {tuple(certainty.earlier_distances.shape)}")
    return certainty, others


def plain_features(learner: Learner, certainty: Certainty) -> Callable[[Tensor], Tensor]:
    """Function from inputs (B, ...) to their features (B, D) by the encoder that nothing was learned by.

    Raises:
        DataError: if the weights changed since they were loaded.
    """
    method, settings = learner.method, learner.settings
    if method.frozen is not None:
        return lambda x: method.eval().query(x.to(settings.device))
    if certainty.encoder is None:
        loaded = load_backbone(**vars(learner.spec))
        if learner.origin is None or loaded.origin is None or loaded.origin.sha256 != learner.origin.sha256:
            raise DataError(f"The weights of {learner.spec.name} changed since they were loaded. Restore the file.")
        loaded.to(settings.device).cast(settings.dtype)
        certainty.encoder = FrozenBackbone(loaded)
    features = certainty.encoder.features
    return lambda x: features(x.to(settings.device))


@torch.no_grad()
def refit(certainty: Certainty, learner: Learner, task: Task, callback: Callback) -> float:
    """Add the training samples of a task, fit to all held-out samples in hand, and return the seconds spent.

    Nothing is selected by the samples: the best class stays the same at every temperature.
    """
    began = time.perf_counter()
    plain = plain_features(learner, certainty)
    train, held_out = (LabeledDataset.concat(parts) for parts in parts_of(task))
    held_out = LabeledDataset.concat([*learner.held_out, held_out])
    features, labels = whole_task(learner, train, callback).extract_features(plain)
    certainty.typicality.add(features, labels, len(task.classes))
    temperature, outlying = copy.deepcopy(certainty.earlier), features[:0]
    if len(held_out):

        def both(x: Tensor) -> Tensor:
            return torch.cat([learner.raw_scores(x).float(), plain(x).float()], dim=1)

        rows, labels = whole_task(learner, held_out, callback).extract_features(both)
        scores, outlying = rows.split([rows.shape[1] - features.shape[1], features.shape[1]], dim=1)
        usable = scores.isfinite().all(1)  # an evaluation and a prediction refuse the others
        groups = learner.answers()
        groups = torch.arange(scores.shape[1]) if groups is None else groups
        temperature.add(scores[usable], labels[usable], groups.to(scores.device))
    certainty.temperature = temperature
    certainty.typicality.hold_out(outlying, certainty.earlier_distances)
    return time.perf_counter() - began


@torch.no_grad()
def forget(certainty: Certainty, learner: Learner, samples: LabeledDataset, label: int) -> None:
    """Subtract all training samples of a class from the covariance, before the class is dropped.

    Raises:
        InputError: if they are not the samples learned.
    """
    plain = plain_features(learner, certainty)
    features, _ = whole_task(learner, samples, Callback()).extract_features(plain)
    certainty.typicality.forget(features, label)
