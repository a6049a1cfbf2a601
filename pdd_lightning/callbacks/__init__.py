"""Callbacks: advancing stages, and watching, evaluating and exporting a run."""

from pdd_lightning.callbacks.evaluation import Evaluation
from pdd_lightning.callbacks.export import ExportRun
from pdd_lightning.callbacks.observer import StageObserver
from pdd_lightning.callbacks.stage_advance import StageAdvance
from pdd_lightning.callbacks.tensorboard import TensorBoardImages
from pdd_lightning.callbacks.transition import TransitionSettings

__all__ = [
    "Evaluation",
    "ExportRun",
    "StageAdvance",
    "StageObserver",
    "TensorBoardImages",
    "TransitionSettings",
]
