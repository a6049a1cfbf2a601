"""Callbacks that log, evaluate and export a run; `pdd_lightning.progression` has the one that advances its stages."""

from pdd_lightning.callbacks.export import ExportRun
from pdd_lightning.callbacks.loggers import StageLogging
from pdd_lightning.callbacks.messages import RunMessages
from pdd_lightning.callbacks.run_evaluation import Evaluation

__all__ = ["Evaluation", "ExportRun", "RunMessages", "StageLogging"]
