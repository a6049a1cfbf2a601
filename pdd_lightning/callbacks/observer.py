"""What happens at the end of a stage, and who wants to know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning.data import ForgettingScores
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.stages import DistillationStage


@dataclass(frozen=True)
class StageReport:
    """Figures of one finished stage.

    Attributes:
        stage: Number of the stage, from 1.
        images: Images in the union after the stage.
        real_images: Real training examples that the stage used; unknown in reports of earlier versions.
        learned_lr: Learning rate learned in the stage, if any.
        lr_img: Learning rate of the images at the end of the stage.
        first_loss: Mean matching loss over the first twentieth of the iterations.
        last_loss: Mean matching loss over the last twentieth of the iterations.
        val_accuracy: Validation accuracy of theta_i, mean over the experts, in [0, 1].
        val_std: Standard deviation of that accuracy over the experts.
        val_networks: Number of experts.
        seconds: Time by part, summed over the networks: `experts` (training those that the stage matched on real
            images, and in the first stage networks for forgetting scores alone), `distil` (with renewing the pool of
            networks, where that is done), and `transition` (training on the union after the stage).
        peak_memory_mb: Highest memory use so far, of the GPU or else of the process, in MB.
    """

    stage: int
    images: int
    learned_lr: float | None
    lr_img: float
    first_loss: float
    last_loss: float
    val_accuracy: float
    val_std: float
    val_networks: int
    seconds: dict[str, float]
    peak_memory_mb: float
    real_images: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return asdict(self)


class StageObserver(Callback):
    """A callback that is told of experts and of finished stages. Called on all processes."""

    def on_experts_ready(
        self, trainer: Trainer, stage_module: DistillationStage, store: TrajectoryStore, after_stage: int
    ) -> None:
        """The experts that start from theta of `after_stage` (0: random) are recorded."""

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
