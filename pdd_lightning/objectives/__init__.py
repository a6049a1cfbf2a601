"""Matching objectives as pure functions of tensors."""

from pdd_lightning.objectives.class_gradients import ClassSides, Distance, class_distance
from pdd_lightning.objectives.distances import (
    KernelMetric,
    Metric,
    characteristic_distance,
    check_metric,
    distribution_distance,
    gradient_distance,
    kernel_distance,
    trajectory_distance,
)

__all__ = [
    "ClassSides",
    "Distance",
    "KernelMetric",
    "Metric",
    "characteristic_distance",
    "check_metric",
    "class_distance",
    "distribution_distance",
    "gradient_distance",
    "kernel_distance",
    "trajectory_distance",
]
