"""Comparisons that one command makes: several runs, their evaluation, a table and a plot."""

from pdd_lightning.studies.base import Study
from pdd_lightning.studies.base_methods import BaseMethods
from pdd_lightning.studies.grid import Arm, GridSettings, GridStudy, Method, Scoring
from pdd_lightning.studies.runner import StepRunner
from pdd_lightning.studies.step import Step

__all__ = [
    "Arm",
    "BaseMethods",
    "GridSettings",
    "GridStudy",
    "Method",
    "Scoring",
    "Step",
    "StepRunner",
    "Study",
]
