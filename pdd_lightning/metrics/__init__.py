"""Measures of learning and forgetting, of single examples in training and of tasks in continual learning; of images."""

from pdd_lightning.metrics.continual import average_accuracy, average_forgetting
from pdd_lightning.metrics.forgetting import Forgetting, ForgettingScore

__all__ = ["Forgetting", "ForgettingScore", "average_accuracy", "average_forgetting"]
