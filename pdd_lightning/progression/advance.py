"""Advancing from stage to stage inside one `Trainer.fit`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from typing import Annotated, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from pydantic import model_validator
from torch import Tensor

from pdd_lightning import distributed, endings, kernels
from pdd_lightning.data import DiscardSettings
from pdd_lightning.data.progressive import RunState
from pdd_lightning.data.synthetic import StoredSet, SyntheticSet
from pdd_lightning.errors import ConfigError, check_at_least
from pdd_lightning.experts import ExpertSettings, TrajectoryStore
from pdd_lightning.progress import print_above_bars
from pdd_lightning.progression.checks import check_method, check_unchanged, given_stages
from pdd_lightning.progression.examples import ExampleChoice
from pdd_lightning.progression.meter import StageMeter
from pdd_lightning.progression.observer import observers, stage_module
from pdd_lightning.progression.transition import PoolSettings, StageNetworks, TransitionSettings
from pdd_lightning.results.schema import StageReport
from pdd_lightning.results.tables import stage_line, stages_table
from pdd_lightning.stages import DistillationStage
from pdd_lightning.stored import Count, Json, Name, Seconds, Stored, array, validate
from pdd_lightning.training import check_at_once


class StageAdvance(Callback):
    """Runs all stages of a progressive distillation.

    Before the first stage it records the experts, if the method follows trajectories. When a stage's iterations are
    done it freezes the images into the union, trains every expert's start point on the union (theta_i), scores theta_i
    on the validation part, records the next experts from there, and begins the next stage with new images. Processes
    share the networks to train. Everything that takes long is stored as soon as it is done, so that a run can be
    stopped at any moment and continued.

    It owns the state of the run, which the data module shows to everybody else, and saves it in checkpoints.

    Args:
        num_stages: Number of stages P; 1 is the base method.
        iterations: Iterations of a stage.
        begin_with: A distilled set whose stages are the first ones of this run, so that later ones may have other
            settings, such as another `ipc`; null begins with none. Networks are trained through its unions.
        experts: Number and training of the experts.
        transition: Training on the union between stages.
        discard: Leaving easy real examples out of stages.
        pool: Networks that methods without trajectories draw from.

    Attributes:
        state: Where the run stands; None before a fit.
        history: Reports of the finished stages.

    Raises:
        ConfigError: A setting is out of range, or the experts record fewer epochs than the method needs.
    """

    _module: DistillationStage
    _networks: StageNetworks

    def __init__(
        self,
        num_stages: int = 5,
        iterations: int = 5000,
        experts: ExpertSettings = ExpertSettings(),  # noqa: B008  (frozen)
        transition: TransitionSettings = TransitionSettings(),  # noqa: B008  (frozen)
        discard: DiscardSettings = DiscardSettings(),  # noqa: B008  (frozen)
        pool: PoolSettings = PoolSettings(),  # noqa: B008  (frozen)
        begin_with: str | None = None,
    ) -> None:
        check_at_least(1, num_stages=num_stages, iterations=iterations)
        self.num_stages = num_stages
        self.iterations = iterations
        self.begin_with = begin_with
        self.experts = experts
        self.transition = transition
        self.discard = discard
        self.pool = pool
        discard.check_stages(num_stages)
        if begin_with is not None and (experts.folder or experts.epochs):
            raise ConfigError(
                "stages.experts.folder and stages.experts.epochs are for experts of the first stage, which begin_with"
                " has already: leave them out"
            )
        self.state: RunState | None = None
        self.history: list[StageReport] = []
        self._clock = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start the run's state, and refuse settings that cannot work."""
        self._module = module = stage_module(pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # The union determines the end. Lightning's epoch count is one too low after a transition that was
            # interrupted and completed later.
            trainer.fit_loop.max_epochs = -1
        check_method(module, trainer.precision, self.experts, self.pool)
        # From the beginning, whatever this callback did before; a checkpoint restores the position.
        union = SyntheticSet.empty(module.data.real.image_shape, module.decode_factor)
        if self.begin_with is not None:
            union = given_stages(self.begin_with, module, self.num_stages)
        self._given = union
        self.state = RunState(union, self.num_stages, self.iterations)
        self.history = []
        self._settings: dict[str, Any] = {}
        self._meter = StageMeter()
        self._scoring_seconds = 0.0
        self._change()
        self._examples = ExampleChoice(self.discard)
        self._examples.setup(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the fit of a finished run at once; refuse to continue a run with other settings."""
        module = self._module
        if self.transition.at_once > 1:
            check_at_once(module.build_network, module.data.real.image_shape, module.device)
        if self._given.num_stages and self._given.labels.ndim != module.distilled[1].ndim:
            raise ConfigError(f"{self.begin_with} has soft labels and the method has hard ones, or the other way round")
        settings = self._run_settings()
        check_unchanged(self._settings, settings, module.state, module.rates)
        self._settings = settings
        if self._reported >= self.num_stages:
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record or open the current stage's experts; complete a transition that was interrupted."""
        module = self._module
        for optimizer in trainer.optimizers:
            for group, configured in zip(optimizer.param_groups, module.parameter_groups(), strict=True):
                group["lr"] = configured["lr"]  # the checkpoint restored the former rates
        self._change(union=module.data.union.to(module.device))
        given = self._given.num_stages
        self._networks = StageNetworks(trainer, module, self.num_stages, self.experts, self.transition, given)
        self._choose_examples(trainer)
        if self._reported < module.data.union.num_stages:
            self._finish_transition(trainer)
        else:
            self._open_experts(trainer)
            if module.state.iteration == 0:
                self._begin_stage()
            self._advance_if_done(trainer)
        self._renew_pool(trainer)
        self._clock = time.perf_counter()  # a continued run does not start an epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Delay signals to the end of the iteration, where a checkpoint is saved, unless other processes would wait."""
        endings.delay_stop(0.0 if distributed.is_distributed() else endings.MAX_DELAY)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of the stage's iterations."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the update and count the iteration."""
        module, iteration = self._module, self._module.state.iteration
        module.check_parameters()
        trainer.should_stop = trainer.should_stop or endings.stop_requested()
        self._meter.add(float(module.last_loss), iteration, self._length(trainer))
        self._change(iteration=iteration + 1)
        if self.pool.generation(iteration + 1) != self.pool.generation(iteration):
            self._renew_pool(trainer)
        now = time.perf_counter()
        self._meter.seconds += now - self._clock
        self._clock = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance, unless the stage was left early (time limit)."""
        self._advance_if_done(trainer)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the table of the stages."""
        if self.history:
            print("\n" + stages_table(self.history).text())

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the run, see `Position`."""
        assert self.state is not None
        return {
            "union": self.state.union.state_dict(),
            "given": self._given.num_stages,
            "iteration": self.state.iteration,
            "settings": self._settings,
            "history": [report.model_dump() for report in self.history],
            "meter": self._meter.model_dump(),
            "scoring_seconds": self._scoring_seconds,
            "scores": self._examples.state_dict(),
            "kernels": kernels.taken(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        position = validate(Position, state_dict, "the checkpoint")
        self._change(union=checkpointed_union(state_dict), iteration=position.iteration)
        self._settings = position.settings
        self.history = position.history
        self._meter = position.meter
        self._scoring_seconds = position.scoring_seconds
        self._examples.load_state_dict(position.scores)
        if position.kernels not in (None, kernels.library() is not None):
            rank_zero_info(
                f"Note: the run was begun {'with' if position.kernels else 'without'} the fused CPU kernels, and"
                " continues otherwise: the images will not be equal bit for bit to those of a run without interruption"
            )

    def _run_settings(self) -> dict[str, Any]:
        """Return all settings that the images depend on, by more than rounding, as JSON."""
        module, transition, experts = self._module, asdict(self.transition), asdict(self.experts)
        del transition["at_once"], experts["folder"]
        stages = {"iterations": self.iterations, "experts": experts, "transition": transition}
        if self.pool.renew_every:
            stages["pool"] = asdict(self.pool)
        if self._given.num_stages:
            stages["begin_with"] = self._given.sha256()
        stages |= self._examples.description()
        model = {name: value for name, value in module.settings.items() if name not in module.equivalent}
        settings = {"model": model, "stages": stages, "precision": module.trainer.precision}
        # As it is read back from a checkpoint, so that the two compare equal.
        return json.loads(json.dumps(settings))  # type: ignore[no-any-return]

    @property
    def _reported(self) -> int:
        """Number of stages that are finished, including their transitions, and those that the run began with."""
        return self._given.num_stages + len(self.history)

    def _change(self, **changes: Any) -> None:
        """Change values of the run's state, and show it to everybody."""
        assert self.state is not None
        self.state = replace(self.state, **changes)
        self._module.data.state = self.state

    def _length(self, trainer: Trainer) -> int:
        """Return the iterations of a stage, which `limit_train_batches` and `fast_dev_run` reduce."""
        return int(min(self.iterations, trainer.num_training_batches))

    def _advance_if_done(self, trainer: Trainer) -> None:
        """Freeze the images of a stage whose iterations are done, and make the transition to the next stage."""
        module = self._module
        if module.state.iteration >= self._length(trainer):
            # First, so that a checkpoint within the transition does not freeze them a second time.
            self._change(union=module.data.union.append(*module.distilled, module.learned_lr), iteration=0)
            self._finish_transition(trainer)

    def _finish_transition(self, trainer: Trainer) -> None:
        """Train on the union, record the next experts, report the stage, and begin the next one."""
        module, finished = self._module, self._module.data.union.num_stages
        matched = self._networks.after(finished - 1)
        recorded = self._open_experts(trainer)
        assert recorded is not None  # a stage is finished
        scoring_seconds = self._scoring_seconds if finished == 1 else 0.0
        self.history.append(self._meter.report(finished, module, matched, recorded, scoring_seconds))
        print_above_bars(stage_line(self.history[-1], self.num_stages))
        for observer in observers(trainer):
            observer.on_stage_end(trainer, module, self.history)
        self._begin_stage()
        if self._reported >= self.num_stages:
            trainer.should_stop = True

    def _begin_stage(self) -> None:
        """Begin with new images and an empty optimizer."""
        module = self._module
        if not module.state.finished:
            module.restart(module.data.generator("initial images", module.state.stage))
        self._meter = StageMeter()
        optimizer = module.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.state.clear()

    def _open_experts(self, trainer: Trainer) -> TrajectoryStore | None:
        """Record or open the trajectories that start where training on the union ended, if any."""
        finished = self._module.data.union.num_stages
        store = self._networks.after(finished)
        self._change(trajectories=store)
        if store is not None:
            for observer in observers(trainer):
                observer.on_experts_ready(trainer, self._module, store, finished)
        return store

    def _choose_examples(self, trainer: Trainer) -> None:
        """Choose the real examples of each stage, and tell the observers the scores."""
        module = self._module
        self._examples.make_scores(module, lambda: self._networks.after(0), self._scoring_networks)
        scores = self._examples.scores
        if scores is None:
            return
        self._change(kept=self._examples.kept(module, self.num_stages))
        for observer in observers(trainer):
            observer.on_scores_ready(trainer, module, scores)

    def _scoring_networks(self) -> TrajectoryStore:
        store = self._networks.for_scores(self.discard.networks, self.discard.epochs)
        self._scoring_seconds = sum(record.record_seconds for record in store.records)
        return store

    def _renew_pool(self, trainer: Trainer) -> None:
        """Draw from the pool of the current iteration, if it is not the one of the transition."""
        state = self._module.state
        generation, finished = self.pool.generation(state.iteration), state.union.num_stages
        if generation and finished and state.iteration < self._length(trainer):
            self._change(trajectories=self._networks.renewed(finished, generation))


class Position(Stored):
    """The position of a run in its checkpoint."""

    union: StoredSet
    given: Count
    iteration: Count
    settings: Json
    history: list[StageReport]
    meter: StageMeter
    scoring_seconds: Seconds
    scores: dict[Name, Annotated[Tensor, array("N: int64 float64", finite=False)]]
    kernels: bool | None = None

    @model_validator(mode="after")
    def check_history(self) -> Position:
        """Refuse a position that no run reaches."""
        finished, stages = len(self.union.learning_rates), self.settings.get("stages", {})
        complete = list(range(self.given + 1, finished + 1))
        if [report.stage for report in self.history] not in (complete, complete[:-1]):
            expected = f"reports of stages {self.given + 1} to {finished}"
            raise ValueError(f"history: expected {expected}, the last of which may be missing")
        iterations = stages.get("iterations", self.iteration) if isinstance(stages, dict) else None
        if not isinstance(iterations, int) or self.iteration > iterations:
            raise ValueError(f"iteration: expected one of settings.stages.iterations, got {self.iteration}")
        return self


def checkpointed_union(state_dict: dict[str, Any]) -> SyntheticSet:
    """Return the union in a `StageAdvance.state_dict`."""
    return SyntheticSet.from_state_dict(state_dict["union"])
