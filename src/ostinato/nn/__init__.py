"""Shared parts of methods that need no backbone."""

from ostinato.nn.gaussians import ClassGaussians
from ostinato.nn.growing import Growing, PerTask
from ostinato.nn.heads import CosineHeads, TaskHeads
from ostinato.nn.matching import cosine, entropy
from ostinato.nn.statistics import ClassMeans

__all__ = ["ClassGaussians", "ClassMeans", "CosineHeads", "Growing", "PerTask", "TaskHeads", "cosine", "entropy"]
