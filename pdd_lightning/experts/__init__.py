"""Expert trajectories and pools of trained networks: recording them and reading them back."""

from pdd_lightning.experts.pool import NetworkStart, draw_start, start_network
from pdd_lightning.experts.recorder import ExpertRecorder, ExpertSettings, StartPoint
from pdd_lightning.experts.trajectory_store import ExpertRecord, TrajectoryStore

__all__ = [
    "ExpertRecord",
    "ExpertRecorder",
    "ExpertSettings",
    "NetworkStart",
    "StartPoint",
    "TrajectoryStore",
    "draw_start",
    "start_network",
]
