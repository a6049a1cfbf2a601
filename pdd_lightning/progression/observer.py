"""Callbacks that are told of experts, finished stages and evaluations."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning.data import ForgettingScores
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.results.schema import StageReport
from pdd_lightning.stages import DistillationStage


class StageObserver(Callback):
    """A callback with hooks for what happens between stages, called on all processes."""

    def on_experts_ready(
        self, trainer: Trainer, stage_module: DistillationStage, store: TrajectoryStore, after_stage: int
    ) -> None:
        """Called when experts that start from theta_`after_stage` (0: random networks) are recorded."""

    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """Called with the forgetting scores of the training part, in its order."""

    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Called when a stage is finished: its images are in the union, its report is the last of `history`."""

    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Called when networks were trained on the union and scored; `rows` holds the figures."""


def observers(trainer: Trainer) -> list[StageObserver]:
    """Return the observers among the trainer's callbacks, in order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, StageObserver)]  # type: ignore[attr-defined]


def stage_module(module: LightningModule) -> DistillationStage:
    """Return the model as a distillation stage.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(module, DistillationStage):
        raise ConfigError(f"the model must be a DistillationStage, got {type(module).__name__}")
    return module
