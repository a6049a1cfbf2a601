"""Distillation stages: one LightningModule per base method."""

from pdd_lightning.stages.base import DistillationStage
from pdd_lightning.stages.idc import IDC
from pdd_lightning.stages.trajectory_matching import TrajectoryMatching

__all__ = ["IDC", "DistillationStage", "TrajectoryMatching"]
