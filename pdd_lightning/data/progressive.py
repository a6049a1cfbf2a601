"""Data of a progressive run: real images, the cumulative union, and the batches of the method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from pdd_lightning import distributed
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ClassSampler, ImageSplit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError, check_seed
from pdd_lightning.randomness import generator_for


class Trajectories(Protocol):
    """Expert trajectories of the current stage."""

    number: int

    def segment(self, expert: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Return the flat parameters `[P]` of an expert after `first` and after `last` epochs."""
        ...


@dataclass(frozen=True)
class RunState:
    """State of a progressive run; only the callback `StageAdvance` replaces it.

    Attributes:
        union: Images of the finished stages, frozen, in model space.
        num_stages: Number of stages of the run.
        iterations: Number of iterations of a stage.
        iteration: Iterations done in the current stage.
        trajectories: Expert trajectories that the current stage matches or draws networks from, if any.
        kept: By stage, indices `[n]` into the training part of the examples that it uses; stages not listed use all.
    """

    union: SyntheticSet
    num_stages: int
    iterations: int
    iteration: int = 0
    trajectories: Trajectories | None = None
    kept: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def stage(self) -> int:
        """Number of the current stage, from 1."""
        return self.union.num_stages + 1

    @property
    def finished(self) -> bool:
        """Whether all stages are finished."""
        return self.union.num_stages >= self.num_stages


class ProgressiveDataModule(LightningDataModule):
    """Real images, the union of the finished stages, and batches of the current stage of a distillation run.

    One epoch of the trainer is one stage. Each batch is a function of seed, stage, iteration and process, so a
    continued run sees the same batches as an uninterrupted one.

    Args:
        real: The real images.
        seed: Seed of the run: experts, initial images, batches and evaluation networks.
    """

    def __init__(self, real: RealDataModule, seed: int = 0) -> None:
        super().__init__()
        check_seed(seed=seed)
        self.real = real
        self.seed = seed
        self._state: RunState | None = None
        self._kept: tuple[Tensor, ImageSplit] | None = None
        self._sampler: ClassSampler | None = None

    @property
    def state(self) -> RunState:
        """State of the run, set by `StageAdvance`.

        Raises:
            ConfigError: The trainer lacks that callback.
        """
        if self._state is None:
            raise ConfigError("distillation needs the callback StageAdvance: add it to the trainer's callbacks")
        return self._state

    @state.setter
    def state(self, state: RunState) -> None:
        self._state = state

    @property
    def union(self) -> SyntheticSet:
        """Images of the finished stages, frozen, in model space."""
        return self.state.union

    @property
    def kept(self) -> ImageSplit:
        """Real training examples that the current stage uses; the same object throughout a stage."""
        return self.kept_in(self.state.stage)

    def kept_in(self, stage: int) -> ImageSplit:
        """Return the real training examples that a stage uses: all, unless easy ones are left out."""
        indices = self.state.kept.get(stage)
        if indices is None:
            return self.real.train
        if self._kept is None or self._kept[0] is not indices:
            self._kept = indices, self.real.train.subset(indices)
        return self._kept[1]

    def class_sampler(self, device: torch.device) -> ClassSampler:
        """Return a sampler of the current stage's real examples on `device`, cached as long as these stay the same."""
        if self._sampler is None or self._sampler.split is not self.kept:
            self._sampler = ClassSampler(self.kept, self.real.num_classes, self.real.pixels, device)
        return self._sampler

    def prepare_data(self) -> None:
        """Download the real images if necessary."""
        self.real.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Load the real images."""
        self.real.setup(stage)

    def generator(self, *key: str | int) -> torch.Generator:
        """Return a generator for one purpose of this run, see `pdd_lightning.randomness`."""
        return generator_for(self.seed, *key)

    def train_dataloader(self) -> StageBatches:
        """Return the remaining batches of the current stage."""
        assert self.trainer is not None
        return StageBatches(self, self.trainer.lightning_module.draw_batch)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and the identity of the images that a checkpoint belongs to."""
        return {"seed": self.seed, "fingerprint": self.real.fingerprint, "dataset": self.real.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare with the state of a checkpoint.

        Raises:
            DataError: The checkpoint was made with other real images, another split, or another seed.
        """
        if state_dict["fingerprint"] != self.real.fingerprint:
            raise DataError(
                f"the checkpoint was made with {state_dict['dataset']} (fingerprint"
                f" {state_dict['fingerprint'][:12]}), but the data is {self.real.name} (fingerprint"
                f" {self.real.fingerprint[:12]}). Use the same images, split and normalization, or start afresh."
            )
        if state_dict["seed"] != self.seed:
            raise DataError(
                f"the checkpoint was made with seed_everything {state_dict['seed']}, not {self.seed}: set it back"
            )


class StageBatches:
    """Batches of one stage, drawn one at a time from the current iteration on.

    Args:
        data: The data module, whose state holds the iteration.
        draw: Draws the batch of an iteration, from 0, with a generator: `draw_batch` of the distillation stage.
    """

    def __init__(self, data: ProgressiveDataModule, draw: Callable[[int, torch.Generator], Any]) -> None:
        self.data = data
        self.draw = draw

    def __len__(self) -> int:
        return self.data.state.iterations

    def __iter__(self) -> Iterator[Any]:
        # A generator function reads the state at the first batch: Lightning calls `iter` before an interrupted
        # transition is completed.
        state, process = self.data.state, distributed.rank()
        for iteration in range(state.iteration, state.iterations):
            yield self.draw(iteration, self.data.generator("batch", state.stage, iteration, process))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the data module holds the position. Lightning expects the method in resumable loaders."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore nothing."""
