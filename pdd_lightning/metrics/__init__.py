"""Metrics of learning and forgetting, of images, and of distilled sets."""

from pdd_lightning.metrics.accuracies import (
    augmentation_robust_score,
    average_accuracy,
    average_forgetting,
    label_robust_score,
)
from pdd_lightning.metrics.forgetting import Forgetting, ForgettingScore

__all__ = [
    "Forgetting",
    "ForgettingScore",
    "augmentation_robust_score",
    "average_accuracy",
    "average_forgetting",
    "label_robust_score",
]
