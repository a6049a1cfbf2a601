"""Scoring networks trained on the distilled set: validation part at the end of `fit`, test part by `test`."""

from __future__ import annotations

from functools import partial

from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning import distributed
from pdd_lightning.callbacks.observer import observers, stage_module
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import (
    EvaluationSettings,
    EvaluationTask,
    evaluation_tasks,
    rows_from_results,
    rows_table,
    run_tasks,
)
from pdd_lightning.evaluation.tasks import Part
from pdd_lightning.stages import DistillationStage


class Evaluation(Callback):
    """Evaluates the union of all finished stages with freshly initialised networks.

    At the end of `fit`, networks trained on the distilled set are scored on the validation part. Random real images
    and the full real set join in `test`, which is the only place that reads the test part. Processes share the
    networks.

    Args:
        settings: Networks per row, their training, and the protocol.
    """

    def __init__(self, settings: EvaluationSettings = EvaluationSettings()) -> None:  # noqa: B008  (frozen)
        self.settings = settings
        self._tasks: list[EvaluationTask] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the data module serve the evaluation of the test part, once it has the union."""
        module = stage_module(pl_module)
        module.data.test_tasks = partial(self._make_tasks, module, "test", baselines=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the distilled set on the validation part."""
        module = stage_module(pl_module)
        if module.data.union.num_stages == 0:
            return
        mine = self._make_tasks(module, "val", baselines=False)
        run_tasks(mine, progress=trainer.progress_bar_callback is not None)
        self._report(trainer, module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the rows."""
        self._report(trainer, stage_module(pl_module))

    def _make_tasks(self, module: DistillationStage, part: Part, baselines: bool) -> list[EvaluationTask]:
        """The tasks of this process."""
        data = module.data
        if data.union.num_stages == 0:
            raise ConfigError("nothing to evaluate: give a checkpoint with a finished stage by --ckpt_path")
        tasks = evaluation_tasks(
            module.frozen,
            data.real,
            data.real.pixels,
            module.network,
            self.settings,
            module.augment,
            part,
            data.seed,
            module.device,
            baselines,
        )
        processes = distributed.world_size()
        mine = tasks[distributed.rank() :: processes]
        # As many for each, or Lightning would leave out the end of the test where there is none.
        self._tasks = mine + [EvaluationTask("waiting", lambda: None)] * (-(-len(tasks) // processes) - len(mine))
        return self._tasks

    def _report(self, trainer: Trainer, module: DistillationStage) -> None:
        parts = distributed.gather([task.result for task in self._tasks])
        in_order = (result for turn in zip(*parts, strict=True) for result in turn)
        results = [result for result in in_order if result is not None]
        rows = rows_from_results(results, module.data.real.class_names)
        if trainer.is_global_zero:
            print("\n" + rows_table(rows) + "\n")
        for observer in observers(trainer):
            observer.on_run_evaluated(trainer, module, rows)
