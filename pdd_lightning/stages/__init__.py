"""Distillation stages: one LightningModule per base method."""

from pdd_lightning.stages.characteristic_matching import CharacteristicFunctionMatching
from pdd_lightning.stages.datm import DATM
from pdd_lightning.stages.distribution_matching import DistributionMatching
from pdd_lightning.stages.ftd import FTD
from pdd_lightning.stages.gradient_matching import GradientMatching
from pdd_lightning.stages.idc import IDC
from pdd_lightning.stages.stage import DistillationStage
from pdd_lightning.stages.trajectory_matching import TrajectoryMatching

__all__ = [
    "DATM",
    "FTD",
    "IDC",
    "CharacteristicFunctionMatching",
    "DistillationStage",
    "DistributionMatching",
    "GradientMatching",
    "TrajectoryMatching",
]
