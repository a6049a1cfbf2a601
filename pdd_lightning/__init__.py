"""Progressive Dataset Distillation with PyTorch Lightning.

Names are imported when they are first used: whoever only reads a distilled set does not wait for Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_lightning.data.distilled import DistilledDataset
    from pdd_lightning.data.progressive import ProgressiveDataModule
    from pdd_lightning.progression import StageAdvance
    from pdd_lightning.stages import (
        IDC,
        DistillationStage,
        DistributionMatching,
        GradientMatching,
        TrajectoryMatching,
    )

__version__ = "0.1.0"

_HOME = {
    "IDC": "stages",
    "DistillationStage": "stages",
    "DistilledDataset": "data.distilled",
    "DistributionMatching": "stages",
    "GradientMatching": "stages",
    "ProgressiveDataModule": "data.progressive",
    "StageAdvance": "progression",
    "TrajectoryMatching": "stages",
}

__all__ = [
    "IDC",
    "DistillationStage",
    "DistilledDataset",
    "DistributionMatching",
    "GradientMatching",
    "ProgressiveDataModule",
    "StageAdvance",
    "TrajectoryMatching",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
