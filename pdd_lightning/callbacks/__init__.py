"""Callbacks that watch, evaluate and export a run; what advances its stages is in `pdd_lightning.progression`."""

from pdd_lightning.callbacks.export import ExportRun
from pdd_lightning.callbacks.messages import RunMessages
from pdd_lightning.callbacks.run_evaluation import Evaluation
from pdd_lightning.callbacks.tensorboard import TensorBoardImages

__all__ = ["Evaluation", "ExportRun", "RunMessages", "TensorBoardImages"]
