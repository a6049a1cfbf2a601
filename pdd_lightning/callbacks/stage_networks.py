"""The networks that the stages of a run need: experts, their start points, pools, and networks for scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from pdd_lightning.callbacks.transition import TransitionSettings
from pdd_lightning.experts import (
    ExpertRecorder,
    ExpertSettings,
    PoolSettings,
    StartPoint,
    TrajectoryStore,
    renewed_pool,
)
from pdd_lightning.stages import DistillationStage


class StageNetworks:
    """Records networks when they are first asked for, in folders below the run's `experts/`, and opens them later.

    Args:
        trainer: The trainer of the run.
        module: The method.
        num_stages: Number of stages of the run.
        experts: Number and training of the experts.
        transition: Training on the union between stages.
        pool: Networks that methods without trajectories draw from.

    Raises:
        SIGTERMException: The process was asked to end while networks were trained.
    """

    def __init__(
        self,
        trainer: Trainer,
        module: DistillationStage,
        num_stages: int,
        experts: ExpertSettings,
        transition: TransitionSettings,
        pool: PoolSettings,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.num_stages = num_stages
        self.experts = experts
        self.transition = transition
        self.pool = pool
        self.root = Path(trainer.default_root_dir) / "experts"
        self._stores: dict[int, TrajectoryStore] = {}

    def opened(self, stage: int) -> TrajectoryStore | None:
        """What `after` gave for a stage before."""
        return self._stores.get(stage)

    def after(self, stage: int) -> TrajectoryStore | None:
        """Trajectories from theta_`stage`.

        A method that follows no trajectories gets theta alone, and nothing before the first stage, since it draws
        random networks itself.
        """
        needed = self.module.trajectory_epochs
        if stage == 0 and needed == 0:
            return None
        if stage not in self._stores:
            self._stores[stage] = self._record(stage, needed)
        return self._stores[stage]

    def for_scores(self, number: int, epochs: int) -> TrajectoryStore:
        """Networks trained on all real images for their forgetting scores alone."""
        recorder = self._recorder(replace(self.experts, number=number, epochs=None))
        return recorder.record(self.root / "scoring", epochs, title="Networks that score the examples")

    def renewed(self, stage: int, generation: int) -> TrajectoryStore:
        """Other networks trained through the first `stage` unions, see `renewed_pool`."""
        recorder = self._recorder(self.experts, first=generation * self.experts.number)
        return renewed_pool(recorder, self.start_point, stage, generation, self.root)

    def start_point(self, stage: int, previous: Callable[[], TrajectoryStore | None]) -> StartPoint:
        """Training on the union of the first `stage` stages, from where `previous` ended."""
        union = self.module.data.union.union(stage).decoded(self.module.data.real.pixels)
        learned = union.learning_rates[-1]
        training = self.transition.training(self.module.default_lr if learned is None else learned)
        return StartPoint(previous, union, training, self.transition.at_once)

    def _record(self, stage: int, needed: int) -> TrajectoryStore:
        recorder, examples = self._recorder(self.experts), self.module.data.kept_in(stage + 1)
        if stage == 0:
            folder, epochs = self.experts.first_folder(self.root), self.experts.epochs or needed
            return recorder.record(folder, epochs, title="Experts of stage 1", examples=examples)
        start = self.start_point(stage, partial(self.after, stage - 1))
        if stage < self.num_stages:
            title = f"Experts of stage {stage + 1}" if needed else f"Networks of stage {stage + 1}"
            return recorder.record(self.root / f"theta_{stage}", needed, start, title, examples)
        return recorder.record(self.root / f"theta_{stage}_final", 0, start, f"Training on {stage} stages")

    def _recorder(self, settings: ExpertSettings, first: int = 0) -> ExpertRecorder:
        data = self.module.data
        return ExpertRecorder(
            self.module.network,
            data.real,
            settings,
            self.module.augment,
            data.seed,
            self.module.device,
            progress=self.trainer.progress_bar_callback is not None,
            first=first,
            on_epoch=self._end_if_asked,
        )

    def _end_if_asked(self) -> None:
        """Lightning itself looks for a signal after iterations only."""
        if self.trainer.received_sigterm:
            raise SIGTERMException
