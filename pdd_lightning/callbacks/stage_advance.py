"""Advancing from stage to stage inside one `Trainer.fit`."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm

from pdd_lightning.callbacks.example_choice import ExampleChoice, begun
from pdd_lightning.callbacks.losses import LossEnds
from pdd_lightning.callbacks.observer import observers, stage_module
from pdd_lightning.callbacks.stage_networks import StageNetworks
from pdd_lightning.callbacks.transition import TransitionSettings
from pdd_lightning.data.discard import DiscardSettings
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings, PoolSettings, TrajectoryStore
from pdd_lightning.results.schema import StageReport
from pdd_lightning.results.tables import stage_line, stages_table
from pdd_lightning.settings import differences
from pdd_lightning.stages import DistillationStage
from pdd_lightning.training import check_at_once

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Precisions of the trainer that stages support."""

MAY_CHANGE = ("lr_img", "lr_lr", "lr_label", "unroll_form")
"""Settings of a method that may be changed when a run is continued: rates that turned out too high, and the form."""


class StageAdvance(Callback):
    """Runs all stages of a progressive distillation.

    Before the first stage it has the experts recorded, where the method follows trajectories. When a stage's
    iterations are done it freezes the images into the union, trains every expert's start point on the union (theta_i),
    scores theta_i on the validation part, has the next experts recorded from there, and begins the next stage with new
    images. Processes share the networks to train. Everything that takes long is stored as soon as it is done, so that
    a run can be stopped at any moment and continued.

    Args:
        num_stages: Number of stages P; 1 is the base method.
        iterations: Iterations of a stage.
        experts: Number and training of the experts.
        transition: Training on the union between stages.
        discard: Leaving easy real examples out of stages.
        pool: Networks that methods without trajectories draw from.

    Raises:
        ConfigError: A setting is out of range, or the experts record fewer epochs than the method needs.
    """

    _networks: StageNetworks

    def __init__(
        self,
        num_stages: int = 5,
        iterations: int = 5000,
        experts: ExpertSettings = ExpertSettings(),  # noqa: B008  (frozen)
        transition: TransitionSettings = TransitionSettings(),  # noqa: B008  (frozen)
        discard: DiscardSettings = DiscardSettings(),  # noqa: B008  (frozen)
        pool: PoolSettings = PoolSettings(),  # noqa: B008  (frozen)
    ) -> None:
        for name, value in {"num_stages": num_stages, "iterations": iterations}.items():
            if value < 1:
                raise ConfigError(f"{name} must be >= 1, got {value}")
        self.num_stages = num_stages
        self.iterations = iterations
        self.experts = experts
        self.transition = transition
        self.discard = discard
        self.pool = pool
        discard.check_stages(num_stages)
        self.history: list[StageReport] = []
        self._settings: dict[str, Any] = {}
        self._losses = LossEnds()
        self._examples = ExampleChoice(discard)
        self._distil_seconds = 0.0
        self._scoring_seconds = 0.0
        self._clock = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tells the data module how many stages there are and how long, and refuses settings that cannot work."""
        module = stage_module(pl_module)
        module.data.num_stages = self.num_stages
        module.data.iterations = self.iterations
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # The union says when the run is over. Lightning's count of epochs does not: it is one too low after a
            # transition that was interrupted and made up for.
            trainer.fit_loop.max_epochs = -1
        if trainer.precision not in PRECISIONS:
            raise ConfigError(
                f"precision {trainer.precision} is not supported, since images and trajectories are float32: choose"
                f" one of {', '.join(PRECISIONS)}"
            )
        needed = module.trajectory_epochs
        if self.experts.epochs is not None and self.experts.epochs < needed:
            raise ConfigError(
                f"the method reads expert snapshots up to epoch {needed} (max_start_epoch + expert_epochs), but"
                f" stages.experts.epochs records only {self.experts.epochs}: raise it, or lower max_start_epoch"
            )
        if needed == 0 and (self.experts.epochs or self.experts.folder):
            raise ConfigError(
                f"{type(module).__name__} follows no trajectories, so that no experts are recorded for it: leave out"
                " stages.experts.epochs and stages.experts.folder"
            )
        if needed and self.pool.refresh_every:
            raise ConfigError(
                f"{type(module).__name__} follows trajectories and draws from no pool of networks: leave out"
                " stages.pool.refresh_every"
            )
        if stage == "fit":
            self._examples.setup(module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the fit of a finished run before it begins; refuses to continue a run with other settings.

        Raises:
            ConfigError: The checkpoint was made with other settings; the message lists them. Or the networks cannot
                be trained at once, as asked for.
        """
        module = stage_module(pl_module)
        if self.transition.at_once > 1:
            check_at_once(module.build_network, module.data.real.image_shape, module.device)
        self._check_settings(self._describe(module), module.data.stage)
        self._stop_if_finished(trainer, module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records or re-opens the current stage's experts; makes up for a transition that was interrupted."""
        module = stage_module(pl_module)
        for optimizer in trainer.optimizers:
            for group, configured in zip(optimizer.param_groups, module.parameter_groups(), strict=True):
                group["lr"] = configured["lr"]  # the checkpoint restored the former ones
        self._networks = StageNetworks(trainer, module, self.num_stages, self.experts, self.transition, self.pool)
        self._choose_examples(trainer, module)
        self._open_experts(trainer, module)
        if module.data.iteration == 0:
            self._begin_stage(module)
        self._advance_if_done(trainer, module)
        self._renew_pool(trainer, module)
        self._clock = time.perf_counter()  # a continued run does not start an epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock of the stage's iterations."""
        self._clock = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts the iteration.

        Raises:
            NonFiniteLossError: The update ruined the images or the learned rate.
        """
        module = stage_module(pl_module)
        module.check_parameters()
        self._losses.add(float(module.last_loss), module.data.iteration, self._length(trainer))
        module.data.iteration += 1
        if self.pool.generation(module.data.iteration) != self.pool.generation(module.data.iteration - 1):
            self._renew_pool(trainer, module)
        now = time.perf_counter()
        self._distil_seconds += now - self._clock
        self._clock = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advances, unless the stage was left early (time limit)."""
        self._advance_if_done(trainer, stage_module(pl_module))

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the table of the stages."""
        if self.history:
            print("\n" + stages_table(self.history).text())

    def state_dict(self) -> dict[str, Any]:
        """Reports of the finished stages, and losses and time of the current one."""
        return {
            "settings": self._settings,
            "history": [report.model_dump() for report in self.history],
            "losses": self._losses.as_dict(),
            "distil_seconds": self._distil_seconds,
            "scoring_seconds": self._scoring_seconds,
            "scores": self._examples.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        self._settings = state_dict["settings"]
        self.history = [StageReport(**report) for report in state_dict["history"]]
        self._losses = LossEnds(**state_dict["losses"])
        self._distil_seconds = state_dict["distil_seconds"]
        self._scoring_seconds = state_dict.get("scoring_seconds", 0.0)
        self._examples.load_state_dict(state_dict.get("scores", {}))

    def _describe(self, module: DistillationStage) -> dict[str, Any]:
        """All settings that the images depend on, but those that may change when a run is continued."""
        settings = {name: value for name, value in module.settings.items() if name not in MAY_CHANGE}
        transition = asdict(self.transition)
        del transition["at_once"]  # the same up to rounding
        stages = {"iterations": self.iterations, "transition": transition}
        if self.pool.refresh_every:
            stages["pool"] = asdict(self.pool)
        stages |= self._examples.description()
        # As it comes back from a checkpoint or a file, so that the two compare equal.
        described: dict[str, Any] = json.loads(json.dumps({"model": settings, "stages": stages}))
        return described

    def _check_settings(self, settings: dict[str, Any], stage: int) -> None:
        stored, wanted = (begun(each, stage) for each in (self._settings, settings))
        if self._settings and stored != wanted:
            changes = "\n  ".join(differences(stored, wanted))
            raise ConfigError(
                f"the checkpoint was made with other settings:\n  {changes}\nRestore them, or begin a new run in"
                f" another folder. Only {', '.join(MAY_CHANGE)} and stages.num_stages may change, and what stages to"
                " come leave out (stages.discard)."
            )
        self._settings = settings

    def _advance_if_done(self, trainer: Trainer, module: DistillationStage) -> None:
        if module.data.iteration >= self._length(trainer):
            self._advance(trainer, module)

    def _length(self, trainer: Trainer) -> int:
        """Iterations of a stage, which `limit_train_batches` and `fast_dev_run` make shorter."""
        return int(min(self.iterations, trainer.num_training_batches))

    def _begin_stage(self, module: DistillationStage) -> None:
        data = module.data
        if data.stage <= self.num_stages:
            module.restart(data.generator("initial images", data.stage))
        data.iteration = 0
        self._losses = LossEnds()
        self._distil_seconds = 0.0
        optimizer = module.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.state.clear()

    def _advance(self, trainer: Trainer, module: DistillationStage) -> None:
        """Freezes the images, makes theta_i and the next experts, reports, and begins the next stage."""
        data = module.data
        finished = data.stage
        used = self._networks.opened(finished - 1)
        data.union = module.frozen.append(*module.distilled, module.learned_lr)
        store = self._open_experts(trainer, module)
        assert store is not None  # a stage is finished
        self.history.append(self._report(finished, module, used, store))
        _say(stage_line(self.history[-1], self.num_stages))
        for observer in observers(trainer):
            observer.on_stage_end(trainer, module, self.history)
        self._begin_stage(module)
        self._stop_if_finished(trainer, module)

    def _stop_if_finished(self, trainer: Trainer, module: DistillationStage) -> None:
        if module.data.union.num_stages >= self.num_stages:
            trainer.should_stop = True

    def _open_experts(self, trainer: Trainer, module: DistillationStage) -> TrajectoryStore | None:
        """Gives the data module the trajectories that start from theta of the last finished stage, if any."""
        finished = module.data.union.num_stages
        store = self._networks.after(finished)
        module.data.trajectories = store
        if store is not None:
            for observer in observers(trainer):
                observer.on_experts_ready(trainer, module, store, finished)
        return store

    def _choose_examples(self, trainer: Trainer, module: DistillationStage) -> None:
        """Says which real examples each stage uses, and tells the observers by which scores."""
        first = partial(self._networks.after, 0)
        scores = self._examples.apply(module, self.num_stages, first, self._scoring_networks)
        if scores is None:
            return
        for observer in observers(trainer):
            observer.on_scores_ready(trainer, module, scores)

    def _scoring_networks(self) -> TrajectoryStore:
        store = self._networks.for_scores(self.discard.networks, self.discard.epochs)
        self._scoring_seconds = sum(record.record_seconds for record in store.records)
        return store

    def _renew_pool(self, trainer: Trainer, module: DistillationStage) -> None:
        """Gives the data module the pool of the current iteration, where that is not the one of the transition."""
        data = module.data
        generation, finished = self.pool.generation(data.iteration), data.union.num_stages
        if generation and finished and data.iteration < self._length(trainer):
            data.trajectories = self._networks.renewed(finished, generation)

    def _report(
        self, stage: int, module: DistillationStage, used: TrajectoryStore | None, made: TrajectoryStore
    ) -> StageReport:
        """Figures of a stage that matched the trajectories `used`, and after which `made` was recorded."""
        accuracies = [record.start_accuracy for record in made.records]
        scoring = self._scoring_seconds if stage == 1 else 0.0
        return StageReport(
            stage=stage,
            images=len(module.data.union.labels),
            real_images=len(module.data.kept_in(stage)),
            learned_lr=module.learned_lr,
            lr_img=module.lr_img,
            first_loss=self._losses.first,
            last_loss=self._losses.last,
            val_accuracy=statistics.fmean(accuracies),
            val_std=statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
            val_networks=len(accuracies),
            seconds={
                "experts": scoring + (sum(record.record_seconds for record in used.records) if used else 0.0),
                "distil": self._distil_seconds,
                "transition": sum(record.start_seconds for record in made.records),
            },
            peak_memory_mb=_peak_memory_mb(module.device),
        )


@rank_zero_only
def _say(line: str) -> None:
    """Prints a line above the progress bars."""
    tqdm.write(line)


def _peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
