"""Python interface: a learner that learns task by task, evaluates, predicts, saves and loads."""

from ostinato.learner.learner import Learner
from ostinato.learner.learning import check_refines
from ostinato.learner.predicting import Prediction
from ostinato.learner.saving import check_inputs
from ostinato.learner.spec import BackboneSpec

__all__ = ["BackboneSpec", "Learner", "Prediction", "check_inputs", "check_refines"]
