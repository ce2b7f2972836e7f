"""The package's transformer, its edits and its weights."""

from ostinato.backbones.base import Backbone, Origin
from ostinato.backbones.clip import ClipBackbone
from ostinato.backbones.edits import Edit, LayerPlan, LinearEdit, Plan, Tokens, prefix_from
from ostinato.backbones.encoder import Arch, Encoder
from ostinato.backbones.text import TextBackbone, Tokenization
from ostinato.backbones.vision import Preprocess, VisionBackbone, VisionSizes

__all__ = [
    "Arch",
    "Backbone",
    "ClipBackbone",
    "Edit",
    "Encoder",
    "LayerPlan",
    "LinearEdit",
    "Origin",
    "Plan",
    "Preprocess",
    "TextBackbone",
    "Tokenization",
    "Tokens",
    "VisionBackbone",
    "VisionSizes",
    "prefix_from",
]
