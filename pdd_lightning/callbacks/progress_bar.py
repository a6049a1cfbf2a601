"""The progress bar of a run."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from pdd_lightning.progression.observer import stage_module


class StageProgressBar(TQDMProgressBar):
    """Lightning's progress bar, counting stages instead of epochs."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names the stage; a continued run does not start an epoch."""
        super().on_train_start(trainer, pl_module)
        self._name_stage(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Names the stage."""
        super().on_train_epoch_start(trainer, pl_module)
        self._name_stage(pl_module)

    def _name_stage(self, pl_module: LightningModule) -> None:
        state = stage_module(pl_module).state
        self.train_progress_bar.set_description(f"Stage {state.stage}/{state.num_stages}")
