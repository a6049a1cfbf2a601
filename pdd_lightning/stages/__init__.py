"""Distillation stages: one LightningModule per base method."""

from pdd_lightning.stages.base import DistillationStage
from pdd_lightning.stages.trajectory_matching import TrajectoryMatching

__all__ = ["DistillationStage", "TrajectoryMatching"]
