"""What one progressive run works on: real images, the cumulative union, and the method's batches."""

from __future__ import annotations

from collections import UserList
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from pdd_lightning import distributed
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ClassSampler, ImageSplit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.randomness import generator_for

Batch_co = TypeVar("Batch_co", covariant=True)


class BatchSource(Protocol[Batch_co]):
    """What draws a method's batches: its distillation stage."""

    def draw_batch(self, data: ProgressiveDataModule, generator: torch.Generator) -> Batch_co:
        """One batch, a function of the data and the generator alone."""
        ...


class Trajectories(Protocol):
    """Expert trajectories of the current stage."""

    number: int

    def segment(self, expert: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Flat parameters `[P]` of an expert after `first` and after `last` epochs."""
        ...


class ProgressiveDataModule(LightningDataModule):
    """Serves a distillation run: batches of the current stage, and what earlier stages left.

    One epoch of the trainer is one stage. The state that is saved in checkpoints is the union and the number
    of iterations done in the current stage; each batch is a function of seed, stage, iteration and process, so
    a continued run sees the batches that the uninterrupted run would have seen.

    Args:
        real: The real images.
        seed: Seed of the whole run: experts, initial images, batches and evaluation networks.

    Attributes:
        union: Images of the finished stages, frozen, in model space.
        iteration: Iterations done in the current stage.
        batch_iteration: Iteration of the stage (from 0) whose batch is being drawn; ahead of `iteration` where batches
            are fetched early. For methods whose batches change in the course of a stage.
        num_stages: Number of stages of the run; like the next two, set by the callback that advances stages.
        iterations: Iterations of a stage.
        trajectories: Expert trajectories of the current stage.
        test_tasks: Makes what `test` works through on this process; set by the evaluation callback.
    """

    union: SyntheticSet
    _kept: ImageSplit

    def __init__(self, real: RealDataModule, seed: int = 0) -> None:
        super().__init__()
        if seed < 0:
            raise ConfigError(f"seed must be >= 0, got {seed}")
        self.real = real
        self.seed = seed
        self.iteration = 0
        self.batch_iteration = 0
        self.num_stages = 0
        self.iterations = 0
        self.trajectories: Trajectories | None = None
        self._kept_positions: dict[int, Tensor] = {}
        self._kept_stage = 0
        self._sampler: ClassSampler | None = None
        self.test_tasks: Callable[[], list[Any]] = list

    @property
    def stage(self) -> int:
        """The stage being distilled, counted from 1."""
        return self.union.num_stages + 1

    @property
    def kept(self) -> ImageSplit:
        """The real training examples that the current stage uses; one and the same object throughout a stage."""
        return self.kept_in(self.stage)

    def kept_in(self, stage: int) -> ImageSplit:
        """The real training examples that a stage uses: the whole training part, unless easy ones are left out."""
        if stage not in self._kept_positions:
            return self.real.train
        if stage != self._kept_stage:
            self._kept = self.real.train.subset(self._kept_positions[stage])
            self._kept_stage = stage
        return self._kept

    def class_sampler(self, device: torch.device) -> ClassSampler:
        """Draws real examples of the current stage class by class; held on `device`, anew where a stage's differ."""
        if self._sampler is None or self._sampler.split is not self.kept:
            self._sampler = ClassSampler(self.kept, self.real.num_classes, self.real.pixels, device)
        return self._sampler

    def keep_only(self, positions: dict[int, Tensor]) -> None:
        """Says which examples stages use.

        Args:
            positions: By stage, positions in the training part `[n]`; a stage that is not listed uses all.
        """
        self._kept_positions = positions
        self._kept_stage = 0

    def prepare_data(self) -> None:
        """Lets the real data module download what it needs."""
        self.real.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Loads the real images. The union is empty at first, and kept when `test` follows `fit`."""
        self.real.setup(stage)
        if not hasattr(self, "union"):
            self.union = SyntheticSet.empty(self.real.image_shape)

    def generator(self, *key: str | int) -> torch.Generator:
        """A generator for one purpose of this run, see `pdd_lightning.randomness`."""
        return generator_for(self.seed, *key)

    def train_dataloader(self) -> StageBatches:
        """The remaining batches of the current stage."""
        assert self.trainer is not None
        return StageBatches(self, self.trainer.lightning_module)  # type: ignore[arg-type]

    def test_dataloader(self) -> UserList[Any]:
        """The evaluation tasks of this process; each trains and scores one network."""
        return UserList(self.test_tasks())  # Lightning would take a list for several loaders

    def state_dict(self) -> dict[str, Any]:
        """The union, the position in the stage, and which data they belong to."""
        return {
            "union": self.union.state_dict(),
            "iteration": self.iteration,
            "seed": self.seed,
            "fingerprint": self.real.fingerprint,
            "dataset": self.real.name,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave.

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
        self.union = SyntheticSet.from_state_dict(state_dict["union"])
        self.iteration = state_dict["iteration"]


class StageBatches:
    """The batches of one stage, drawn one at a time from the iteration that has been reached.

    Args:
        data: The data module; its position says where to begin.
        source: The distillation stage, which draws the batches.
    """

    def __init__(self, data: ProgressiveDataModule, source: BatchSource[Any]) -> None:
        self.data = data
        self.source = source

    def __len__(self) -> int:
        return self.data.iterations

    def __iter__(self) -> Iterator[Any]:
        # A generator, so that the position is read at the first batch: Lightning calls `iter` before an
        # interrupted transition is made up for.
        stage, process = self.data.stage, distributed.rank()
        for iteration in range(self.data.iteration, self.data.iterations):
            self.data.batch_iteration = iteration
            yield self.source.draw_batch(self.data, self.data.generator("batch", stage, iteration, process))

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is the data module's. That the method exists tells Lightning so."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""
