"""Parts that several methods share."""

from ostinato.nn.growing import Growing, PerTask
from ostinato.nn.heads import TaskHeads
from ostinato.nn.matching import cosine
from ostinato.nn.statistics import ClassMeans

__all__ = ["ClassMeans", "Growing", "PerTask", "TaskHeads", "cosine"]
