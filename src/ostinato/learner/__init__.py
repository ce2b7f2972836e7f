"""The Python interface: a learner that is taught task by task, evaluated, saved, loaded, and predicts."""

from ostinato.learner.learner import Learner
from ostinato.learner.predicting import Prediction
from ostinato.learner.saving import check_inputs
from ostinato.learner.spec import BackboneSpec

__all__ = ["BackboneSpec", "Learner", "Prediction", "check_inputs"]
