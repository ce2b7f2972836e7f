"""Checks of what a prediction asks for, and the answer "unknown"."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostinato.errors import InputError
from ostinato.learner.certainty import plain_features
from ostinato.learner.predicting import Predictor, check_asked

if TYPE_CHECKING:
    from ostinato.learner.learner import Learner


def predictor_of(learner: Learner, topk: int, threshold: float | None, reject_rate: float | None) -> Predictor:
    """Make the predictor of a learner; for arguments and errors see :meth:`Learner.predict`."""
    check_asked(learner.temperature, topk, threshold, reject_rate)
    return Predictor(
        transform=learner.eval_transform,
        scores=learner.scores,
        class_names=learner.class_names,
        temperature=learner.temperature,
        backbone=learner.spec.name,
        topk=topk,
        threshold=threshold,
        reject_rate=reject_rate,
        typicality=None if reject_rate is None else _typicality(learner, reject_rate),
    )


def _typicality(learner: Learner, rate: float) -> Callable[[Tensor], Tensor]:
    """Function from transformed inputs (B, ...) to shares (B,), see :class:`ostinato.nn.typicality.Typicality`.

    Raises:
        InputError: if there are too few held-out samples for the rate.
    """
    certainty = learner.certainty
    if certainty is None:
        raise InputError(
            "reject_rate needs statistics that this model of an earlier version does not have. Learn it again."
        )
    n, wanted = certainty.typicality.samples, math.ceil(1 / rate - 1e-9) - 1
    if n < wanted:
        most = f" It can take {math.ceil(1000 / (n + 1)) / 1000} or more." if n else ""
        raise InputError(
            f"reject_rate={rate} needs {wanted} held-out samples, but this model has {n}.{most} Learn it again on more "
            "images, or with a larger data.validation."
        )
    features = plain_features(learner, certainty)

    @torch.inference_mode()
    def shares(x: Tensor) -> Tensor:
        return certainty.typicality(features(x))

    return shares
