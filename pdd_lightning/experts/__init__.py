"""Expert trajectories: recording them and reading them back."""

from pdd_lightning.experts.recorder import ExpertRecorder, ExpertSettings, StartPoint
from pdd_lightning.experts.store import ExpertRecord, TrajectoryStore

__all__ = ["ExpertRecord", "ExpertRecorder", "ExpertSettings", "StartPoint", "TrajectoryStore"]
