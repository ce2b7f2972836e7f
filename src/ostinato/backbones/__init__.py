"""The one editable transformer, its edits and its weights."""

from ostinato.backbones.edits import Edit, LayerPlan, LinearEdit, Plan, Tokens, prefix_from
from ostinato.backbones.encoder import Arch, Encoder
from ostinato.backbones.vision import Backbone, Origin, Preprocess

__all__ = [
    "Arch",
    "Backbone",
    "Edit",
    "Encoder",
    "LayerPlan",
    "LinearEdit",
    "Origin",
    "Plan",
    "Preprocess",
    "Tokens",
    "prefix_from",
]
