"""Figures that are computed from others."""

from pdd_lightning.metrics.ranking import augmentation_robust_score, label_robust_score

__all__ = ["augmentation_robust_score", "label_robust_score"]
