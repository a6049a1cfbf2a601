"""Images, histograms and curves for TensorBoard."""

from __future__ import annotations

import statistics
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
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


class TensorBoardImages(StageObserver):
    """Writes images, pixel histograms, forgetting scores, expert curves, values of stages and hyperparameters.

    Does nothing without a `TensorBoardLogger`.

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
        writer = _writer(trainer)
        if writer is None:
            return
        for name in ("losses", "accuracies"):
            epochs = zip(*(getattr(record, name) for record in store.records), strict=True)
            for epoch, values in enumerate(epochs, 1):
                tag = f"experts_of_stage_{after_stage + 1}/training_{'loss' if name == 'losses' else 'accuracy'}"
                curves = {"mean": statistics.fmean(values), "lowest": min(values), "highest": max(values)}
                for curve, value in curves.items():
                    writer.add_scalar(f"{tag}_{curve}", value, epoch)

    @rank_zero_only
    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """Write the forgetting scores of the real examples, and pictures of the easiest and hardest ones."""
        writer = _writer(trainer)
        if writer is None:
            return
        real, learned = stage_module.data.real, scores.scores.isfinite()
        if bool(learned.any()):
            writer.add_histogram("forgetting/scores", scores.scores[learned], 0)
        writer.add_scalar("forgetting/never_learned", int((~learned).sum()), 0)
        for name in ("easiest", "hardest"):
            picture = example_grid(real.train, scores, real.class_names, real.name, name == "hardest")
            writer.add_image(f"forgetting/{name}", picture, 0)

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the images of the current stage and their pixel values, in the first iteration and at the interval."""
        writer = _writer(trainer)
        module = stage_module(pl_module)
        iteration, stage = batch_idx + 1, module.state.stage
        if writer is None or (iteration > 1 and iteration % self.every_n_iterations):
            return
        stages = torch.full_like(module.labels, stage)
        title = f"{module.data.real.name}, iteration {iteration}"
        picture = grid_of(module.images.detach(), module.labels, stages, module, title)
        writer.add_image(f"images/stage_{stage}", picture, iteration)
        # TensorBoard fails beyond its bins, which end at 1e20.
        pixels = module.data.real.pixels.decode(module.images.detach()).nan_to_num(0.0).clamp(-1e6, 1e6)
        writer.add_histogram(f"pixels/stage_{stage}", pixels, iteration)

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Write the union so far, and the stage's values against the number of the stage."""
        writer = _writer(trainer)
        if writer is None:
            return
        report, union = history[-1], stage_module.data.union
        title = f"{stage_module.data.real.name}, {len(union)} distilled images"
        picture = grid_of(union.images, union.labels, union.stages, stage_module, title)
        writer.add_image("images/union", picture, report.stage)
        values: dict[str, float | None] = {"val_accuracy": report.val_accuracy, "last_matching_loss": report.last_loss}
        values |= {"real_images": report.real_images, "learned_lr": report.learned_lr}
        for name, value in values.items():
            if value is not None:
                writer.add_scalar(f"stages/{name}", value, report.stage)

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Write the settings with the accuracy of the distilled set."""
        logger = trainer.logger
        if not isinstance(logger, TensorBoardLogger):
            return
        settings = {**stage_module.settings, "seed": rows[0]["seed"]}
        network = settings.pop("network")
        settings |= {"network": network["class_path"], **network["init_args"]}
        accuracies = {f"accuracy/{row['part']}_{row_title(row).replace(' ', '_')}": row["mean"] for row in rows}
        logger.log_hyperparams(settings, accuracies)
        logger.save()


def _writer(trainer: Trainer) -> SummaryWriter | None:
    logger = trainer.logger
    return logger.experiment if isinstance(logger, TensorBoardLogger) else None


def grid_of(images: Tensor, labels: Tensor, stages: Tensor, module: DistillationStage, title: str) -> Tensor:
    """Return a labeled grid of images in model space; see `labeled_grid`."""
    real = module.data.real
    return labeled_grid(real.pixels.decode(images), labels, stages, real.class_names, title)
