"""Measures of learning and forgetting, of images, and of what a distilled set is worth."""

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
