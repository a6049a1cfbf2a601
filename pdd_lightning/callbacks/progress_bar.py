"""The progress bar of a run."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from pdd_lightning.progression.observer import stage_module


class StageProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with stages instead of epochs."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Show the stage."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        state = stage_module(pl_module).state
        self.train_progress_bar.set_description(f"Stage {state.stage}/{state.num_stages}", refresh=False)
