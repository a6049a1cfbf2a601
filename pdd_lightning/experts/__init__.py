"""Expert trajectories and pools of trained networks: recording them and reading them back."""

from pdd_lightning.experts.adopt import adopt_trajectories
from pdd_lightning.experts.pool import NetworkStart, draw_start, start_network
from pdd_lightning.experts.recorder import ExpertRecorder, ExpertSettings
from pdd_lightning.experts.renewal import PoolSettings, renewed_pool
from pdd_lightning.experts.scoring import forgetting_scores
from pdd_lightning.experts.starts import StartPoint
from pdd_lightning.experts.store import ExpertRecord, TrajectoryStore

__all__ = [
    "ExpertRecord",
    "ExpertRecorder",
    "ExpertSettings",
    "NetworkStart",
    "PoolSettings",
    "StartPoint",
    "TrajectoryStore",
    "adopt_trajectories",
    "draw_start",
    "forgetting_scores",
    "renewed_pool",
    "start_network",
]
