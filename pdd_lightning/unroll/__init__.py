"""Training a network for some steps such that the result is differentiable in the training data."""

from pdd_lightning.unroll.modes import Mode, choose_mode, unroll
from pdd_lightning.unroll.problem import InnerProblem

__all__ = ["InnerProblem", "Mode", "choose_mode", "unroll"]
