"""Evaluation of a run: on the validation part at the end of `fit`, on the test part by `pdd test`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from pdd_lightning import distributed
from pdd_lightning.errors import ConfigError
from pdd_lightning.evaluation import EvaluationSettings, Part, Subject, evaluate
from pdd_lightning.progression.advance import StageAdvance
from pdd_lightning.progression.observer import observers, stage_module
from pdd_lightning.results.result_store import ResultStore
from pdd_lightning.results.tables import evaluation_table
from pdd_lightning.stages import DistillationStage


class Evaluation(Callback):
    """Scores networks trained on the union of all finished stages on the validation part, at the end of `fit`.

    Processes share the networks. The result of each network is kept in `evaluation.jsonl` of the run folder, and not
    computed again.

    Args:
        settings: Networks per row, their training, protocols and baselines.
    """

    def __init__(self, settings: EvaluationSettings = EvaluationSettings()) -> None:  # noqa: B008  (frozen)
        self.settings = settings

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse settings that the method cannot work with."""
        _check_expert_inits(self.settings, stage_module(pl_module))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the distilled set, and random real images if asked for, on the validation part."""
        module = stage_module(pl_module)
        if module.data.union.num_stages > 0:
            baselines = tuple(name for name in self.settings.baselines if name == "random")
            networks = self.settings.num_networks  # of random images as well: `pdd test` takes more of them
            settings = replace(self.settings, baselines=baselines, random_sets=networks, full_data_epochs=0)
            evaluate_run(trainer, module, "val", settings)


def evaluate_run(trainer: Trainer, module: DistillationStage, part: Part, settings: EvaluationSettings) -> None:
    """Evaluate the union of a run on a part of the real images, print the rows and tell the observers.

    Called on all processes, with the method attached to the trainer and its data set up.

    Raises:
        ConfigError: No stage is finished, or the settings do not suit the method.
        DataError: A class has fewer real images than a baseline needs.
    """
    data, union = module.data, module.data.union
    if union.num_stages == 0:
        raise ConfigError("nothing to evaluate: give a checkpoint with a finished stage by --ckpt_path")
    _check_expert_inits(settings, module)
    root = Path(trainer.default_root_dir)
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    advances = [callback for callback in callbacks if isinstance(callback, StageAdvance)]
    subject = Subject(
        synthetic=union,
        real=data.real,
        pixels=data.real.pixels,
        factory=module.network,
        augment=module.augment,
        part=part,
        seed=data.seed,
        device=trainer.strategy.root_device,
        experts=advances[0].experts.first_folder(root / "experts") if advances else None,
        store=ResultStore(root / "evaluation.jsonl"),
    )
    rows = evaluate(subject, settings, progress=trainer.progress_bar_callback is not None)
    if distributed.rank() == 0:
        print("\n" + evaluation_table(rows).text() + "\n")
    for observer in observers(trainer):
        observer.on_run_evaluated(trainer, module, rows)


def _check_expert_inits(settings: EvaluationSettings, module: DistillationStage) -> None:
    if settings.expert_inits and module.trajectory_epochs == 0:
        raise ConfigError(
            f"{type(module).__name__} follows no trajectories, so that there are no experts' initializations: leave out"
            " evaluation.expert_inits"
        )
