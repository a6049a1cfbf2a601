"""What happens at the end of a stage, and who wants to know."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning.data import ForgettingScores
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.results.schema import StageReport
from pdd_lightning.stages import DistillationStage


class StageObserver(Callback):
    """A callback that is told of experts and of finished stages. Called on all processes."""

    def on_experts_ready(
        self, trainer: Trainer, stage_module: DistillationStage, store: TrajectoryStore, after_stage: int
    ) -> None:
        """The experts that start where networks stand after `after_stage` (0: random ones) are recorded."""

    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """The forgetting scores of the training part are known, in its order."""

    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """A stage is finished: its images are in the union, and its report is the last of `history`."""

    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Networks were trained on the union and scored; `rows` holds the figures."""


def observers(trainer: Trainer) -> Iterator[StageObserver]:
    """The observers among the trainer's callbacks, in order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StageObserver):
            yield callback


def stage_module(module: LightningModule) -> DistillationStage:
    """The model as a distillation stage.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(module, DistillationStage):
        raise ConfigError(f"the model must be a DistillationStage, got {type(module).__name__}")
    return module
