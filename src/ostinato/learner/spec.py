"""Specification of a backbone, and its record in an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ostinato.backbones import Backbone, VisionBackbone, VisionSizes
from ostinato.defaults import DEFAULT_BACKBONE
from ostinato.records import ArtifactRecord


@dataclass(frozen=True)
class BackboneSpec:
    """Arguments of :func:`ostinato.backbones.weights.load_backbone`.

    ``sha256`` is for one load of weights that were just verified; a learner does not keep it.
    """

    name: str = DEFAULT_BACKBONE
    weights: str | None = None
    size: int | None = None
    preprocess: str = "weights"
    length: int | None = None
    readout: str | None = None
    sizes: VisionSizes | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        """Split a folder given as the name into name and weights."""
        if self.weights is None and Path(self.name).is_dir():
            object.__setattr__(self, "weights", self.name)
            object.__setattr__(self, "name", Path(self.name).resolve().name)


def sizes_of(backbone: Backbone) -> dict[str, Any] | None:
    """Sizes that build an image encoder without timm; None for other backbones."""
    # Not a subclass: a CLIP model has another encoder beside it.
    if type(backbone) is not VisionBackbone:
        return None
    return TypeAdapter(VisionSizes).dump_python(backbone.sizes, mode="json")  # lists, as records have them


def recorded_sizes(about: ArtifactRecord) -> VisionSizes | None:
    """The :func:`sizes_of` an artifact."""
    sizes = about.backbone.sizes
    return None if sizes is None else TypeAdapter(VisionSizes).validate_python(sizes.model_dump())
