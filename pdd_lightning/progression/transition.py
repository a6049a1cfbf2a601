"""What happens between two stages: networks are trained on the union, and the next stage's experts from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from lightning.pytorch import Trainer

from pdd_lightning import distributed
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import check_at_least
from pdd_lightning.experts import ExpertRecorder, ExpertSettings, StartPoint, TrajectoryStore
from pdd_lightning.experts.trajectory_store import delete_folders
from pdd_lightning.stages import DistillationStage
from pdd_lightning.training import TrainingSettings


@dataclass(frozen=True)
class TransitionSettings:
    """Training on the union at the end of a stage, at the stage's learned learning rate.

    Attributes:
        epochs: Passes over the union.
        batch_size: Images per step.
        momentum: Momentum of SGD.
        weight_decay: L2 penalty of SGD.
        milestones: Fractions of the epochs, in (0, 1), after which the learning rate drops.
        gamma: Factor of each drop.
        cutmix: Probability with which a batch is mixed by CutMix.
        at_once: Networks trained at once, in operations on all of them; the result is the same up to rounding. Faster
            if steps are small: measure it with `benchmarks/at_once.py`. Not for networks with dropout.
    """

    epochs: int = 1000
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    milestones: tuple[float, ...] = (0.5,)
    gamma: float = 0.1
    cutmix: float = 0.0
    at_once: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, **{"transition.at_once": self.at_once})
        self.training(lr=1.0)  # refuses bad values before the first transition

    def training(self, lr: float) -> TrainingSettings:
        """Return the training on the union at rate `lr`."""
        return TrainingSettings.of(self, lr=lr)


@dataclass(frozen=True)
class PoolSettings:
    """The networks that gradient and distribution matching draw from after the first stage.

    They are trained through the unions of all finished stages. How many there are is `stages.experts.number`.

    Attributes:
        renew_every: Iterations of a stage after which other networks take the place of the pool's, trained through
            the same unions from other initializations; null keeps the pool for the whole stage.
    """

    renew_every: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, **{"pool.renew_every": self.renew_every})

    def generation(self, iteration: int) -> int:
        """Return which pool an iteration (from 0) of a stage draws from; 0 is the one that the transition left."""
        return iteration // self.renew_every if self.renew_every else 0


@dataclass(frozen=True)
class StageNetworks:
    """Records networks when they are first asked for, in folders below the run's `experts/`, and opens them later.

    Attributes:
        trainer: The trainer of the run.
        module: The method.
        num_stages: Number of stages of the run.
        experts: Number and training of the experts.
        transition: Training on the union between stages.
        given: Stages that the run began with: networks are first needed after these.
        stores: Networks that are open, by stage.
    """

    trainer: Trainer
    module: DistillationStage
    num_stages: int
    experts: ExpertSettings
    transition: TransitionSettings
    given: int = 0
    stores: dict[int, TrajectoryStore] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """Folder of all experts of the run."""
        return Path(self.trainer.default_root_dir) / "experts"

    def after(self, stage: int) -> TrajectoryStore | None:
        """Return trajectories from theta_`stage`.

        For a method that follows no trajectories these are theta alone, and None before the first stage, for which it
        draws random networks itself.
        """
        needed = self.module.trajectory_epochs
        if stage == 0 and needed == 0:
            return None
        if stage not in self.stores:
            self.stores[stage] = self._record(stage, needed)
        return self.stores[stage]

    def for_scores(self, number: int, epochs: int) -> TrajectoryStore:
        """Return networks trained on all real images for their forgetting scores alone."""
        recorder = self._recorder(replace(self.experts, number=number, epochs=None, images_per_epoch=None))
        return recorder.record(self.root / "scoring", epochs, title="Networks that score the examples")

    def renewed(self, stages: int, generation: int) -> TrajectoryStore:
        """Return other networks trained through the unions of the first `stages` stages, in place of the pool's.

        What is recorded already is kept, so that it can be interrupted. Earlier renewed pools are deleted once this one
        is complete; the pool that the transition left stays, since the next transition continues from it. Pools of a
        stage are counted from 1.
        """
        recorder = self._recorder(self.experts, first=generation * self.experts.number)

        def trained_through(stage: int) -> TrajectoryStore:
            start = self.start_point(stage, lambda: trained_through(stage - 1) if stage > 1 else None)
            title = f"Networks of stage {stages + 1}, pool {generation + 1}, union {stage}"
            return recorder.record(self.root / f"theta_{stage}_pool_{generation}", 0, start, title)

        store = trained_through(stages)
        if distributed.rank() == 0:
            delete_folders(self.root, "theta_*_pool_*", kept=store.folder)
        distributed.barrier()
        return store

    def start_point(self, stage: int, previous: Callable[[], TrajectoryStore | None]) -> StartPoint:
        """Return the training on the union of the first `stage` stages, from where `previous` ended."""
        return StartPoint(previous, (self._phase(stage),), self.transition.at_once)

    def _phase(self, stage: int) -> tuple[SyntheticSet, TrainingSettings]:
        """Return the union of the first `stage` stages, and the training on it."""
        union = self.module.data.union.union(stage).decoded(self.module.data.real.pixels)
        learned = union.learning_rates[-1]
        return union, self.transition.training(self.module.default_lr if learned is None else learned)

    def _record(self, stage: int, needed: int) -> TrajectoryStore:
        fresh = self.experts.inits == "fresh"
        # No two networks have the same initialization, in later stages either.
        recorder = self._recorder(self.experts, first=stage * self.experts.number if fresh else 0)
        examples = self.module.data.kept_in(stage + 1)
        if stage == 0:
            folder, epochs = self.experts.first_folder(self.root), self.experts.epochs or needed
            return recorder.record(folder, epochs, title="Experts of stage 1", examples=examples)
        if fresh or stage == self.given:  # from random initialization through all unions
            start = StartPoint(lambda: None, tuple(map(self._phase, range(1, stage + 1))), self.transition.at_once)
        else:
            start = self.start_point(stage, partial(self.after, stage - 1))
        if stage < self.num_stages:
            title = f"Experts of stage {stage + 1}" if needed else f"Networks of stage {stage + 1}"
            return recorder.record(self.root / f"theta_{stage}", needed, start, title, examples)
        return recorder.record(self.root / f"theta_{stage}_final", 0, start, f"Training on {stage} stages")

    def _recorder(self, settings: ExpertSettings, first: int = 0) -> ExpertRecorder:
        module, data = self.module, self.module.data
        fixed = module.augment, data.seed, module.device, self.trainer.progress_bar_callback is not None
        return ExpertRecorder(module.network, data.real, settings, *fixed, first)
