"""One rolling checkpoint, from which a run continues wherever it was stopped, and the one before it."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from pydantic import Field

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError, DamagedFileError, check_at_least
from pdd_lightning.files import atomic_write_bytes, publish
from pdd_lightning.progression.advance import StageAdvance, check_position
from pdd_lightning.progression.observer import stage_module
from pdd_lightning.stored import Count, Json, Name, State, Stored, checked, damaged, load_tensors, read_bytes

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
_MARK = b"\npdd_lightning sha256 "
_TRAILER = len(_MARK) + 64 + 1


class _Group(Stored, extra="allow"):
    """A parameter group of an optimizer."""

    params: list[Count]
    lr: Annotated[float, Field(gt=0)]


class _Optimizer(Stored):
    """What an optimizer's `state_dict` gives."""

    state: State
    param_groups: Annotated[list[_Group], Field(min_length=1)]


class _Data(Stored):
    """Which images and which seed a checkpoint belongs to."""

    seed: Count
    fingerprint: Name
    dataset: Name


class _Checkpoint(Stored):
    """A whole checkpoint; the position of the run is `StageAdvance`'s."""

    epoch: Count
    global_step: Count
    version: Annotated[str, Field(alias="pytorch-lightning_version", pattern=r"^[2-9]\.\d{1,3}\.[\w.+]{1,50}$")]
    state_dict: State
    loops: Json
    optimizer_states: Annotated[list[_Optimizer], Field(min_length=1)]
    data: Annotated[_Data, Field(alias="ProgressiveDataModule")]


def read_checkpoint(path: Path, say: bool = True) -> dict[str, Any]:
    """Reads a checkpoint, or where the last one is damaged the one before it.

    Args:
        path: The checkpoint; of `last.ckpt` the one before it is `previous.ckpt`.
        say: Say which one is taken, if it is not the first.

    Returns:
        Its content, with the path that it was read from as `path`.

    Raises:
        ConfigError: There is none, or it is not one of a distillation.
        DataError: It holds code.
        DamagedFileError: It is truncated or altered, and so is the one before it, or there is none.
    """
    found = [one for one in dict.fromkeys([path, _former(path)]) if one.exists()]
    if not found:
        raise ConfigError(f"there is no checkpoint {path}: run `pdd fit` first, or correct --ckpt_path")
    errors = []
    for one in found:
        try:
            content = _read(one)
        except DamagedFileError as error:
            errors.append(error)
            continue
        if say and one != path:
            _warn(f"{errors[0] if errors else f'{path} is missing'}; the one before it, {one.name}, is taken")
        return {**content, "path": str(one)}
    both = f" The one before it, {PREVIOUS}, is damaged, too: begin a new run in another folder." * (len(errors) > 1)
    raise DamagedFileError(f"{errors[0]}.{both}" if both else str(errors[0])) from errors[0]


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint, or, of `last.ckpt`, the one before it."""
    return path.exists() or _former(path).exists()


def _former(path: Path) -> Path:
    return path.with_name(PREVIOUS) if path.name == LAST else path


def _read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, checked."""
    data = memoryview(read_bytes(path))
    body, trailer = data[:-_TRAILER], bytes(data[-_TRAILER:])
    if trailer.startswith(_MARK):
        if trailer != _trailer(body):
            raise damaged(path, "its content does not match its checksum")
    else:
        body = data  # without a checksum: an earlier version wrote it
        _check_parts(path, body)
    content = load_tensors(path, body)
    if not isinstance(content, dict) or "ProgressiveDataModule" not in content:
        raise ConfigError(f"{path} is not a checkpoint of a distillation: correct --ckpt_path")
    checked(_Checkpoint, content, path)
    position = content.get("callbacks", {})
    check_position(position.get(StageAdvance.__name__) if isinstance(position, dict) else None, path)
    return content


def _trailer(body: memoryview) -> bytes:
    """What follows the archive: its checksum."""
    return _MARK + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _holds(path: Path, data: memoryview) -> bool:
    """Whether a file holds these bytes."""
    with path.open("rb") as file:
        blocks = range(0, len(data), 1 << 20)
        return all(file.read(1 << 20) == bytes(data[start : start + (1 << 20)]) for start in blocks) and not file.read(
            1
        )


def _check_parts(path: Path, data: memoryview) -> None:
    """Refuses an archive of which a part does not match its checksum, which torch does not look at."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            part = archive.testzip()
    except Exception as error:  # many unrelated types on damaged files
        raise damaged(path, f"it is no checkpoint ({error})") from error
    if part:
        raise damaged(path, f"its part {part} does not match its checksum")


@rank_zero_only
def _warn(line: str) -> None:
    logging.getLogger("pdd_lightning").warning(line)


class CheckpointFiles(CheckpointIO):
    """Writes and reads checkpoints with a checksum at their end, which other readers of archives pass over.

    Attributes:
        loaded: The file that was read, if any.
    """

    def __init__(self) -> None:
        self.loaded: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint, which has reached the disk and was compared when this returns.

        Raises:
            DamagedFileError: What can be read is not what was written.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        trailer = _trailer(buffer.getbuffer())
        buffer.seek(0, io.SEEK_END)
        buffer.write(trailer)
        path = atomic_write_bytes(path, buffer.getbuffer())
        if not _holds(path, buffer.getbuffer()):
            raise damaged(path, "what was written is not what is read: check the disk")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, see `read_checkpoint`; on the CPU, and never code."""
        content = read_checkpoint(Path(path))
        self.loaded = Path(content.pop("path"))
        return content

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class RollingCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt` up to date: every few iterations, and before and after each transition.

    The file is replaced by a rename once its successor is written and compared, and kept as `previous.ckpt`: whenever
    a run is stopped, one of them is whole. It derives from Lightning's callback so that `ckpt_path="last"` finds it.
    Must come after `StageAdvance`, which Lightning sees to by putting checkpoint callbacks last.

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
        self.path = Path(folder) / LAST
        self.every_n_iterations = every_n_iterations
        self._files = CheckpointFiles()
        self._written = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has checkpoints written and read with a checksum."""
        super().setup(trainer, pl_module, stage)
        trainer.strategy.checkpoint_io = self._files = CheckpointFiles()
        self._written = False

    @property
    def state_key(self) -> str:
        """The same whatever the settings: the callback has no state."""
        return type(self).__name__

    def state_dict(self) -> dict[str, Any]:
        """No state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """No state."""

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
        partial = self.path.with_suffix(".partial")
        with endings.temporary(partial) if trainer.is_global_zero else nullcontext():
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                if self.path.exists() and (self._written or self._files.loaded == self.path):
                    self._keep_former()  # which is known to be whole
                publish(partial, self.path)
                self._written = True
        trainer.strategy.barrier()

    def _keep_former(self) -> None:
        """Calls the last checkpoint the previous one, too, until the new one takes its name."""
        spare, former = self.path.with_name("previous.partial"), self.path.with_name(PREVIOUS)
        spare.unlink(missing_ok=True)
        try:
            os.link(self.path, spare)
            spare.replace(former)
        except OSError:  # a file system without links: for a moment, there is the previous one alone
            self.path.replace(former)
        with suppress(OSError):
            spare.unlink()  # it is still there where both were the same file
