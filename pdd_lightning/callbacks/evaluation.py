"""Scoring networks trained on the distilled set: validation part at the end of `fit`, test part by `test`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm.auto import tqdm

from pdd_lightning import distributed
from pdd_lightning.callbacks.observer import observers, stage_module
from pdd_lightning.callbacks.stage_advance import StageAdvance
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import (
    EvaluationSettings,
    EvaluationTask,
    Subject,
    evaluation_tasks,
    run_tasks,
)
from pdd_lightning.evaluation.plan import Part
from pdd_lightning.evaluation.tasks import say_kept, tasks_bar
from pdd_lightning.results.store import ResultStore, rows_from_results
from pdd_lightning.results.tables import evaluation_table
from pdd_lightning.stages import DistillationStage


class Evaluation(Callback):
    """Evaluates the union of all finished stages with freshly initialised networks.

    At the end of `fit`, networks trained on the distilled set are scored on the validation part. Baselines and the
    full real set join in `test`, which is the only place that reads the test part. Processes share the networks. The
    result of each network is kept in `evaluation.jsonl` of the run folder, and taken from there by the next start.

    Args:
        settings: Networks per row, their training, protocols and baselines.
    """

    def __init__(self, settings: EvaluationSettings = EvaluationSettings()) -> None:  # noqa: B008  (frozen)
        self.settings = settings
        self._tasks: list[EvaluationTask] = []
        self._bar: tqdm[Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the data module serve the evaluation of the test part, once it has the union.

        Raises:
            ConfigError: Experts' initialisations are asked for, but the method has no experts.
        """
        module = stage_module(pl_module)
        if self.settings.expert_inits and module.trajectory_epochs == 0:
            raise ConfigError(
                f"{type(module).__name__} follows no trajectories, so that there are no experts' initialisations: leave"
                " out evaluation.expert_inits"
            )
        module.data.test_tasks = partial(self._make_tasks, trainer, module, "test", self.settings)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the distilled set on the validation part."""
        module = stage_module(pl_module)
        if module.data.union.num_stages == 0:
            return
        mine = self._make_tasks(trainer, module, "val", replace(self.settings, baselines=(), full_data_epochs=0))
        run_tasks(mine, progress=trainer.progress_bar_callback is not None)
        self._report(trainer, module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the progress of the networks' training."""
        self._bar = tasks_bar(self._tasks, trainer.progress_bar_callback is not None)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the rows."""
        self._close_bar()
        self._report(trainer, stage_module(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves the terminal in order."""
        self._close_bar()

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _make_tasks(
        self, trainer: Trainer, module: DistillationStage, part: Part, settings: EvaluationSettings
    ) -> list[EvaluationTask]:
        """The tasks of this process."""
        subject = _subject(trainer, module, part)
        tasks = evaluation_tasks(subject, settings)
        say_kept(tasks, subject)
        processes = distributed.world_size()
        mine = tasks[distributed.rank() :: processes]
        # As many for each, or Lightning would leave out the end of the test where there is none.
        self._tasks = mine + [EvaluationTask()] * (-(-len(tasks) // processes) - len(mine))
        return self._tasks

    def _report(self, trainer: Trainer, module: DistillationStage) -> None:
        parts = distributed.gather([task.result for task in self._tasks])
        in_order = (result for turn in zip(*parts, strict=True) for result in turn)
        results = [result for result in in_order if result is not None]
        rows = rows_from_results(results, module.data.real.class_names, self.settings.every_stage)
        if trainer.is_global_zero:
            print("\n" + evaluation_table(rows).text() + "\n")
        for observer in observers(trainer):
            observer.on_run_evaluated(trainer, module, rows)


def _subject(trainer: Trainer, module: DistillationStage, part: Part) -> Subject:
    """The run's union, to be evaluated."""
    data = module.data
    if data.union.num_stages == 0:
        raise ConfigError("nothing to evaluate: give a checkpoint with a finished stage by --ckpt_path")
    root = Path(trainer.default_root_dir)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    advances = [callback for callback in callbacks if isinstance(callback, StageAdvance)]
    return Subject(
        synthetic=module.frozen,
        real=data.real,
        pixels=data.real.pixels,
        factory=module.network,
        augment=module.augment,
        part=part,
        seed=data.seed,
        device=module.device,
        experts=advances[0].experts.first_folder(root / "experts") if advances else None,
        store=ResultStore(root / "evaluation.jsonl"),
    )
