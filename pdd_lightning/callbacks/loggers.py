"""Curves, pictures and histograms for the loggers of the trainer."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from pdd_lightning.data import ForgettingScores
from pdd_lightning.errors import check_at_least
from pdd_lightning.experts import TrajectoryStore
from pdd_lightning.progression.observer import StageObserver, stage_module
from pdd_lightning.results.grids import example_grid, labeled_grid
from pdd_lightning.results.result_store import row_title
from pdd_lightning.results.schema import StageReport
from pdd_lightning.stages import DistillationStage

_VALUES = {"losses": "loss", "accuracies": "accuracy"}
"""Values of the experts' epochs, and what their charts are called."""


class StageLogging(StageObserver):
    """Logs expert curves, values of stages, accuracies, hyperparameters, pictures, and pixel histograms.

    Every logger of the trainer gets the numbers, and those that can show pictures (TensorBoard, Weights & Biases,
    MLflow) the pictures; histograms are for TensorBoard alone.

    Args:
        every_n_iterations: Iterations between two pictures of the current images.

    Raises:
        ConfigError: `every_n_iterations` is below 1.
    """

    def __init__(self, every_n_iterations: int = 100) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        self.every_n_iterations = every_n_iterations

    @rank_zero_only
    def on_experts_ready(
        self, trainer: Trainer, stage_module: DistillationStage, store: TrajectoryStore, after_stage: int
    ) -> None:
        """Write the training curves of the experts: mean, lowest and highest value of each epoch."""
        if (writer := _writer(trainer)) is not None:
            stages = range(1, stage_module.state.num_stages + 1)
            charts = {name: ["Margin", _curves(name)] for name in (_expert_tag(s, v) for s in stages for v in _VALUES)}
            writer.add_custom_scalars({"experts": charts})
        for name in _VALUES:
            epochs = zip(*(getattr(record, name) for record in store.records), strict=True)
            for epoch, values in enumerate(epochs, 1):
                summary = statistics.fmean(values), min(values), max(values)
                _log(trainer, dict(zip(_curves(_expert_tag(after_stage + 1, name)), summary, strict=True)), epoch)

    @rank_zero_only
    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """Write the forgetting scores of the real examples, and pictures of the easiest and hardest ones."""
        if not trainer.loggers:
            return
        writer, real, learned = _writer(trainer), stage_module.data.real, scores.scores.isfinite()
        if writer is not None and bool(learned.any()):
            writer.add_histogram("forgetting/scores", scores.scores[learned], 0)
        _log(trainer, {"forgetting/never_learned": int((~learned).sum())}, 0)
        for name in ("easiest", "hardest"):
            picture = example_grid(real.train, scores, real.class_names, real.name, name == "hardest")
            _log_picture(trainer, f"forgetting/{name}", picture, 0)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the images of the current stage and their pixel values, in the first iteration and at the interval."""
        module = stage_module(pl_module)
        iteration, stage = batch_idx + 1, module.state.stage
        if not trainer.loggers or (iteration > 1 and iteration % self.every_n_iterations):
            return
        stages = torch.full_like(module.labels, stage)
        title = f"{module.data.real.name}, iteration {iteration}"
        picture = grid_of(module.images.detach(), module.labels, stages, module, title)
        _log_picture(trainer, f"images/stage_{stage}", picture, iteration)
        if (writer := _writer(trainer)) is None:
            return
        # TensorBoard fails beyond its bins, which end at 1e20.
        pixels = module.data.real.pixels.decode(module.images.detach()).nan_to_num(0.0).clamp(-1e6, 1e6)
        writer.add_histogram(f"pixels/stage_{stage}", pixels, iteration)

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Write the union so far, and the stage's values against the number of the stage."""
        if not trainer.loggers:
            return
        report, union = history[-1], stage_module.data.union
        title = f"{stage_module.data.real.name}, {len(union)} distilled images"
        picture = grid_of(union.images, union.labels, union.stages, stage_module, title)
        _log_picture(trainer, "images/union", picture, report.stage)
        values: dict[str, float | None] = {"val_accuracy": report.val_accuracy, "last_matching_loss": report.last_loss}
        values |= {"real_images": report.real_images, "learned_lr": report.learned_lr}
        _log(trainer, {f"stages/{name}": value for name, value in values.items() if value is not None}, report.stage)

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Write the settings with the accuracies, whose step is the number of distilled images."""
        settings = {**stage_module.settings, "seed": rows[0]["seed"]}
        network = settings.pop("network")
        settings |= {"network": network["class_path"], **network["init_args"]}
        accuracies = {f"accuracy/{row['part']}_{row_title(row).replace(' ', '_')}": row["mean"] for row in rows}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, accuracies, len(stage_module.data.union))
            else:
                logger.log_hyperparams(settings)
                logger.log_metrics(accuracies, len(stage_module.data.union))
            logger.save()


def _expert_tag(stage: int, name: str) -> str:
    return f"experts_of_stage_{stage}/training_{_VALUES[name]}"


def _curves(tag: str) -> list[str]:
    """Return the names of a mean and of the bounds of the band around it."""
    return [f"{tag}_{curve}" for curve in ("mean", "lowest", "highest")]


def _writer(trainer: Trainer) -> SummaryWriter | None:
    writers = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return writers[0] if writers else None


def _log(trainer: Trainer, values: dict[str, float], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step)


def _log_picture(trainer: Trainer, name: str, picture: Tensor, step: int) -> None:
    """Log a picture `[3, height, width]`, uint8, with the loggers that can show it."""
    pixels = picture.permute(1, 2, 0).numpy()
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, picture, step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, f"{name}_{step}.png")
        elif hasattr(logger, "log_image"):  # WandbLogger and those that follow it
            logger.log_image(name, [pixels])


def grid_of(images: Tensor, labels: Tensor, stages: Tensor, module: DistillationStage, title: str) -> Tensor:
    """Return a labeled grid of images in model space; see `labeled_grid`."""
    real = module.data.real
    return labeled_grid(real.pixels.decode(images), labels, stages, real.class_names, title)
