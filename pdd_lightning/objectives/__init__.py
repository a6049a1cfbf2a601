"""Matching objectives as pure functions: tensors in, a scalar out."""

from pdd_lightning.objectives.class_gradients import ClassSides, Distance, class_distance, class_distances_together
from pdd_lightning.objectives.distribution import distribution_distance
from pdd_lightning.objectives.gradient import Metric, check_metric, gradient_distance
from pdd_lightning.objectives.kernel import KernelMetric, kernel_distance
from pdd_lightning.objectives.trajectory import trajectory_distance

__all__ = [
    "ClassSides",
    "Distance",
    "KernelMetric",
    "Metric",
    "check_metric",
    "class_distance",
    "class_distances_together",
    "distribution_distance",
    "gradient_distance",
    "kernel_distance",
    "trajectory_distance",
]
