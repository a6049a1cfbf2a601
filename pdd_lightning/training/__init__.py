"""Training networks on images held in memory: experts, transitions and evaluation all use it."""

from pdd_lightning.training.loop import EpochRecord, Images, TrainingSettings, train_network
from pdd_lightning.training.score import Score, score_network

__all__ = ["EpochRecord", "Images", "Score", "TrainingSettings", "score_network", "train_network"]
