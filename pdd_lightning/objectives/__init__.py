"""Matching objectives as pure functions: tensors in, a scalar out."""

from pdd_lightning.objectives.kernel import KernelMetric, kernel_distance
from pdd_lightning.objectives.trajectory import trajectory_distance

__all__ = ["KernelMetric", "kernel_distance", "trajectory_distance"]
