"""Measures of learning and forgetting, of images, and of what a distilled set is worth."""

from pdd_lightning.metrics.continual import average_accuracy, average_forgetting
from pdd_lightning.metrics.forgetting import Forgetting, ForgettingScore
from pdd_lightning.metrics.ranking import augmentation_robust_score, label_robust_score

__all__ = [
    "Forgetting",
    "ForgettingScore",
    "augmentation_robust_score",
    "average_accuracy",
    "average_forgetting",
    "label_robust_score",
]
