"""One rolling checkpoint, from which a run continues wherever it was stopped."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from pdd_lightning.errors import check_at_least
from pdd_lightning.files import atomic_write_bytes
from pdd_lightning.progression.observer import stage_module


class _WholeFiles(TorchCheckpointIO):
    """Writes checkpoints by a rename in their own folder; Lightning's way leads through the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes a checkpoint, whole or not at all."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        atomic_write_bytes(path, buffer.getbuffer())


class RollingCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` up to date: every few iterations, and before and after each transition.

    The file is replaced by a rename, so that it is whole at every moment. It derives from Lightning's callback so
    that `ckpt_path="last"` finds it. Must come after `StageAdvance`, which Lightning sees to by putting checkpoint
    callbacks last.

    Args:
        folder: Where `last.ckpt` is kept.
        every_n_iterations: Iterations between two checkpoints.

    Raises:
        ConfigError: `every_n_iterations` is below 1.
    """

    def __init__(self, folder: str | Path, every_n_iterations: int = 50) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        # Lightning's own callback never saves twice at one global step, as is needed around a transition; of it
        # only the discovery by `ckpt_path="last"` is used.
        super().__init__(dirpath=folder, save_last=True, save_top_k=0, every_n_train_steps=every_n_iterations)
        self.path = Path(folder) / "last.ckpt"
        self.every_n_iterations = every_n_iterations

    @property
    def state_key(self) -> str:
        """The same whatever the settings: the callback has no state."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """No state."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the trainer write whole files."""
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = _WholeFiles()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the recorded experts' stage, or a transition that was made up for."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves at the interval, at the end of the stage, and when the trainer is about to stop."""
        last = batch_idx + 1 >= trainer.num_training_batches
        stopping = trainer.should_stop or trainer.received_sigterm
        # Between two optimiser steps accumulated gradients would be lost.
        intervals = (self.every_n_iterations, trainer.accumulate_grad_batches)
        if last or stopping or not any((batch_idx + 1) % interval for interval in intervals):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves after a transition; a stage that was left early has been saved by the batch hook."""
        if stage_module(pl_module).state.iteration == 0:
            self._save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save."""

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        trainer.save_checkpoint(self.path, weights_only=False)
