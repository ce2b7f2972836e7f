"""Frozen backbone without edits, with caches for repeated inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ostinato.backbones.base import Backbone
from ostinato.backbones.cache import PLAIN, FeatureCache, StateCache
from ostinato.backbones.edits import LayerPlan, Tokens


class FrozenBackbone:
    """A backbone without edits whose weights never change, so that earlier results can be looked up.

    Args:
        backbone: frozen.

    Attributes:
        feature_cache: features by the content of an input; None for no cache.
        state_cache: states by the content of an input and layer; None, the default, for no cache.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.feature_cache: FeatureCache | None = FeatureCache()
        self.state_cache: StateCache | None = None

    def persist(self, folder: str | Path) -> None:
        """Also keep features in a file in ``folder``, see :meth:`FeatureCache.persist`."""
        if self.feature_cache is not None:
            self.feature_cache.persist(folder)

    @torch.no_grad()
    def features(self, x: Tensor, *, training: bool = False) -> Tensor:
        """Features (B, D) of inputs.

        In training, only a cache on disk is used: the number of unknown inputs of a batch, which are computed together,
        affects the last bits, and a resumed run should repeat these.

        Args:
            x: inputs (B, ...) of the backbone.
            training: the inputs may never come again, as augmented ones.
        """
        cache = self.feature_cache
        if cache is None or (training and not cache.persistent):
            return self.backbone(x)
        return cache.features(self.backbone, x, passing=training)

    @torch.no_grad()
    def features_under(self, x: Tensor, plans: Sequence[LayerPlan | None], start: int) -> list[Tensor]:
        """Features (B, D) of inputs under each of several plans that no longer change; None stands for no edit.

        The layers below the edits run once for all plans, and an input that comes again is looked up under every plan,
        by its content and the values of the edits.

        Args:
            x: inputs (B, ...) of the backbone, not augmented.
            plans: without adapters, which have no values to compare.
            start: lowest layer that a plan may edit.
        """

        def compute(x: Tensor) -> list[Tensor]:
            tokens = self.states(x, start)
            return [self.backbone.features(tokens, plan, start=start) for plan in plans]

        if self.feature_cache is None or not len(x):
            return compute(x)
        names = [PLAIN if plan is None else plan.fingerprint() for plan in plans]
        return self.feature_cache.under(self.backbone, x, names, compute)

    @torch.no_grad()
    def states(self, x: Tensor, layer: int) -> Tokens:
        """States (B, N, D) that enter a layer."""
        if self.state_cache is not None and layer > 0:
            return self.state_cache.states(self.backbone, x, layer)
        return self.backbone.run(self.backbone.embed(x), stop=layer)

    @contextmanager
    def without_caches(self) -> Iterator[None]:
        """Compute everything within the block."""
        kept = self.feature_cache, self.state_cache
        self.feature_cache = self.state_cache = None
        try:
            yield
        finally:
            self.feature_cache, self.state_cache = kept
