"""Matching objectives as pure functions: tensors in, a scalar out."""

from pdd_lightning.objectives.trajectory import trajectory_distance

__all__ = ["trajectory_distance"]
