"""Python interface: a learner that learns task by task, evaluates, predicts, saves and loads."""

from ostinato.learner.bundling import bundle, located, way_back
from ostinato.learner.learner import Learner
from ostinato.learner.learning import check_refines
from ostinato.learner.predicting import Prediction
from ostinato.learner.saving import artifact_folder, check_inputs
from ostinato.learner.spec import BackboneSpec

__all__ = [
    "BackboneSpec",
    "Learner",
    "Prediction",
    "artifact_folder",
    "bundle",
    "check_inputs",
    "check_refines",
    "located",
    "way_back",
]
