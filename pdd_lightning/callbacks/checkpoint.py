"""A rolling checkpoint, from which a run continues wherever it was stopped, and the previous one."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError, DamagedFileError, check_at_least
from pdd_lightning.files import atomic_write_bytes, publish
from pdd_lightning.progression.advance import Position
from pdd_lightning.progression.observer import stage_module
from pdd_lightning.stored import Count, Json, Name, State, Stored, damaged_error, load_tensors, read_bytes, validate

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MARK = b"\npdd_lightning sha256 "
_TRAILER_BYTES = len(_MARK) + 64 + 1


class _Group(Stored, extra="allow"):
    """A parameter group of an optimizer."""

    params: list[Count]
    lr: Annotated[float, Field(gt=0)]


class _Optimizer(Stored):
    """An optimizer's `state_dict`."""

    state: State
    param_groups: Annotated[list[_Group], Field(min_length=1)]


class _Data(Stored):
    """The images and the seed that a checkpoint belongs to."""

    seed: Count
    fingerprint: Name
    dataset: Name


class _Callbacks(Stored):
    """States of callbacks."""

    position: Annotated[Position, Field(alias="StageAdvance")]


class _Checkpoint(Stored):
    """Content of a checkpoint."""

    epoch: Count
    global_step: Count
    version: Annotated[str, Field(alias="pytorch-lightning_version", pattern=r"^[2-9]\.\d{1,3}\.[\w.+]{1,50}$")]
    state_dict: State
    loops: Json
    optimizer_states: Annotated[list[_Optimizer], Field(min_length=1)]
    callbacks: _Callbacks
    data: Annotated[_Data, Field(alias="ProgressiveDataModule")]


def read_checkpoint(path: Path, say: bool = True) -> dict[str, Any]:
    """Read a checkpoint, or if `last.ckpt` is damaged or missing, `previous.ckpt`.

    Args:
        path: The checkpoint.
        say: Log that the previous one is taken.

    Returns:
        Its content, and as `path` the path that it was read from.

    Raises:
        ConfigError: There is none, or it is not one of a distillation.
        DataError: It holds code.
        DamagedFileError: It is truncated or altered, and so is the previous one, if any.
    """
    found = [file for file in dict.fromkeys([path, _previous(path)]) if file.exists()]
    if not found:
        raise ConfigError(f"there is no checkpoint {path}: run `pdd fit` first, or correct --ckpt_path")
    errors = []
    for file in found:
        try:
            content = _read(file)
        except DamagedFileError as error:
            errors.append(error)
            continue
        if say and file != path:
            _warn(f"{errors[0] if errors else f'{path} is missing'}; the one before it, {file.name}, is taken")
        return {**content, "path": str(file)}
    if len(errors) == 1:
        raise errors[0]
    raise DamagedFileError(
        f"{errors[0]}. The one before it, {PREVIOUS}, is damaged, too: begin a new run in another folder."
    ) from errors[0]


def has_checkpoint(path: Path) -> bool:
    """Return whether there is a checkpoint, or a previous one."""
    return path.exists() or _previous(path).exists()


def _previous(path: Path) -> Path:
    return path.with_name(PREVIOUS) if path.name == LAST else path


def _read(path: Path) -> dict[str, Any]:
    """Read and check a checkpoint."""
    data = memoryview(read_bytes(path))
    body = data[:-_TRAILER_BYTES]
    if data[-_TRAILER_BYTES:] != _trailer(body):
        raise damaged_error(path, "it does not end with the checksum of its content")
    content = load_tensors(path, body)
    if not isinstance(content, dict) or "ProgressiveDataModule" not in content:
        raise ConfigError(f"{path} is not a checkpoint of a distillation: correct --ckpt_path")
    validate(_Checkpoint, content, path)
    return content


def _trailer(body: memoryview) -> bytes:
    """Return the checksum that follows the archive, which other readers of archives ignore."""
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n"


@rank_zero_only
def _warn(line: str) -> None:
    logging.getLogger("pdd_lightning").warning(line)


class CheckpointFiles(CheckpointIO):
    """Writes and reads checkpoints that end with a checksum.

    Attributes:
        loaded: The file that was read, if any.
    """

    def __init__(self) -> None:
        self.loaded: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint, flush it to the disk, and read it back.

        Raises:
            DamagedFileError: What is read back is not what was written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        trailer = _trailer(buffer.getbuffer())
        buffer.seek(0, io.SEEK_END)
        buffer.write(trailer)
        path = atomic_write_bytes(path, buffer.getbuffer())
        if path.read_bytes() != buffer.getbuffer():
            raise damaged_error(path, "what was written is not what is read: check the disk")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint to the CPU, see `read_checkpoint`."""
        content = read_checkpoint(Path(path))
        self.loaded = Path(content.pop("path"))
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class RollingCheckpoint(Checkpoint):
    """Saves `last.ckpt` every few iterations, and before and after each transition.

    A rename replaces the file once its successor is written and compared, and the old one is kept as `previous.ckpt`:
    whenever a run is stopped, one of them is complete. Must come after `StageAdvance`; Lightning moves checkpoint
    callbacks to the end.

    Args:
        folder: Folder of `last.ckpt`.
        every_n_iterations: Iterations between two checkpoints.

    Raises:
        ConfigError: `every_n_iterations` is below 1.
    """

    def __init__(self, folder: str | Path, every_n_iterations: int = 50) -> None:
        check_at_least(1, every_n_iterations=every_n_iterations)
        self.path = Path(folder) / LAST
        self.every_n_iterations = every_n_iterations
        self._files = CheckpointFiles()
        self._written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the trainer read and write checkpoints with a checksum."""
        trainer.strategy.checkpoint_io = self._files = CheckpointFiles()
        self._written = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after experts were recorded or an interrupted transition was completed."""
        self._save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the interval, at the end of the stage, and when the trainer is about to stop."""
        last = batch_idx + 1 >= trainer.num_training_batches
        stopping = trainer.should_stop or trainer.received_sigterm
        # Between two optimizer steps accumulated gradients would be lost.
        intervals = (self.every_n_iterations, trainer.accumulate_grad_batches)
        if last or stopping or not any((batch_idx + 1) % interval for interval in intervals):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after a transition; a stage that was left early has been saved by the batch hook."""
        if stage_module(pl_module).state.iteration == 0:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        partial = self.path.with_suffix(".partial")
        with endings.temporary(partial) if trainer.is_global_zero else nullcontext():
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                if self.path.exists() and (self._written or self._files.loaded == self.path):  # known to be intact
                    self._keep_previous()
                publish(partial, self.path)
                self._written = True
        trainer.strategy.barrier()

    def _keep_previous(self) -> None:
        """Give the last checkpoint the name of the previous one, too, until the new one takes its own name."""
        spare, previous = self.path.with_name("previous.partial"), self.path.with_name(PREVIOUS)
        spare.unlink(missing_ok=True)
        try:
            os.link(self.path, spare)
            spare.replace(previous)
        except OSError:  # a file system without links: for a moment there is only the previous one
            self.path.replace(previous)
        with suppress(OSError):
            spare.unlink()  # still there if both were the same file
