"""Training of networks on images in memory, for experts, transitions and evaluation."""

from pdd_lightning.training.cutmix import Mixed, mix
from pdd_lightning.training.ensemble import check_at_once, train_networks
from pdd_lightning.training.loop import EpochRecord, Images, TrainingSettings, train_network
from pdd_lightning.training.ongoing import OngoingTraining
from pdd_lightning.training.score import Score, score_network

__all__ = [
    "EpochRecord",
    "Images",
    "Mixed",
    "OngoingTraining",
    "Score",
    "TrainingSettings",
    "check_at_once",
    "mix",
    "score_network",
    "train_network",
    "train_networks",
]
