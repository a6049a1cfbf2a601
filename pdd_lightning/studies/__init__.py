"""Comparisons that one command makes: several runs, their evaluation, a table and a plot."""

from pdd_lightning.studies.arms import Arm, Method, Scoring
from pdd_lightning.studies.base import Study
from pdd_lightning.studies.base_methods import BaseMethods
from pdd_lightning.studies.conditioning import Conditioning
from pdd_lightning.studies.continual_learning import ContinualLearning
from pdd_lightning.studies.cross_architecture import CrossArchitecture
from pdd_lightning.studies.discarding import Discarding
from pdd_lightning.studies.grid import GridSettings, GridStudy
from pdd_lightning.studies.larger_sets import LargerSets
from pdd_lightning.studies.runner import StepRunner
from pdd_lightning.studies.stage_count import StageCount
from pdd_lightning.studies.stage_statistics import StageStatistics
from pdd_lightning.studies.step import Step

__all__ = [
    "Arm",
    "BaseMethods",
    "Conditioning",
    "ContinualLearning",
    "CrossArchitecture",
    "Discarding",
    "GridSettings",
    "GridStudy",
    "LargerSets",
    "Method",
    "Scoring",
    "StageCount",
    "StageStatistics",
    "Step",
    "StepRunner",
    "Study",
]
