"""Unrolled training loops, which are differentiable in the training data."""

from pdd_lightning.unroll.modes import Mode, choose_mode, unroll
from pdd_lightning.unroll.problem import InnerProblem

__all__ = ["InnerProblem", "Mode", "choose_mode", "unroll"]
