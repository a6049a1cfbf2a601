"""Export of a run: the distilled set, pictures, and the summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pdd_lightning import __version__
from pdd_lightning.callbacks.loggers import grid_of
from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DamagedFileError, NonFiniteLossError, PDDError
from pdd_lightning.files import atomic_write_bytes, lock_file
from pdd_lightning.progression import StageAdvance
from pdd_lightning.progression.observer import StageObserver, stage_module
from pdd_lightning.results.grids import encode_png, example_grid
from pdd_lightning.results.schema import EvaluatedRow, RunSummary, StageReport, write_stored
from pdd_lightning.stages import DistillationStage
from pdd_lightning.stored import MAX_RATE, read_stored


class ExportRun(StageObserver):
    """Writes the results of a run into `trainer.default_root_dir`, after each stage and by atomic renames.

    - `distilled.safetensors`: the union of all finished stages, see `pdd_lightning.data.DistilledDataset`.
    - `forgetting.npz`, `images/easiest.png` and `images/hardest.png`: the forgetting scores of the real examples, if
      the run has them, and the examples with the lowest and highest scores.
    - `images/stage_<i>.png` and `images/union.png`: labeled grids in true colors.
    - `summary.json`: settings, a report per stage, and the rows of every evaluation.
    - `last_good.safetensors`: only when a loss was not finite; the union with the last good images of the
      unfinished stage.
    """

    @rank_zero_only
    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """Write the scores and the pictures of the easiest and the hardest examples."""
        root, real = Path(trainer.default_root_dir), stage_module.data.real
        scores.save(root / "forgetting.npz")
        for name in ("easiest", "hardest"):
            picture = example_grid(real.train, scores, real.class_names, real.name, name == "hardest")
            atomic_write_bytes(root / "images" / f"{name}.png", encode_png(picture))

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Write the distilled set, the pictures and the stages' reports."""
        root, data, union = Path(trainer.default_root_dir), stage_module.data, stage_module.data.union
        _save_set(root / "distilled.safetensors", union, stage_module)
        _save_stage(root, stage_module, history[-1].stage)
        title = f"{data.real.name}, {len(union)} distilled images"
        _save_picture(root / "images" / "union.png", union, stage_module, title)
        changes = {
            "package_version": __version__,
            "dataset": {"name": data.real.name, "fingerprint": data.real.fingerprint},
            "seed": data.seed,
            "settings": stage_module.settings,
            "stages": history,
        }
        path = root / "summary.json"
        with lock_file(path):
            write_stored(path, _read_summary(path).model_copy(update=changes))

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore files that were deleted or damaged since their stage ended."""
        module, root = stage_module(pl_module), Path(trainer.default_root_dir)
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        history = [report for each in callbacks if isinstance(each, StageAdvance) for report in each.history]
        if not history or _is_complete(root, module.data.union):
            return
        for stage in range(1, len(history)):
            _save_stage(root, module, stage)
        self.on_stage_end(trainer, module, history)
        rank_zero_info(f"What was missing or damaged in {root} was written again")

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Add the rows to the summary, in place of earlier rows for the same part of the data."""
        path, parts = Path(trainer.default_root_dir) / "summary.json", {row["part"] for row in rows}
        with lock_file(path):  # a run may be evaluated while it continues
            summary = _read_summary(path)
            remaining = [row for row in summary.evaluation if row.part not in parts]
            evaluation = remaining + [EvaluatedRow(**row) for row in rows]
            write_stored(path, summary.model_copy(update={"evaluation": evaluation}))

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save the last good images when a loss was not finite."""
        if not isinstance(exception, NonFiniteLossError):
            return
        module = stage_module(pl_module)
        path, rate = Path(trainer.default_root_dir) / "last_good.safetensors", module.learned_lr
        usable = rate if rate is not None and 0 < rate <= MAX_RATE else None  # the rate may be what went wrong
        _save_set(path, module.data.union.append(*module.last_finite, usable), module)
        rank_zero_info(f"The last good images are saved in {path}")


def _save_set(path: Path, synthetic: SyntheticSet, module: DistillationStage) -> None:
    data = module.data
    metadata = {
        "dataset": {"name": data.real.name, "fingerprint": data.real.fingerprint},
        "method": type(module).__name__,
        "network": module.settings["network"],
        "settings": {**module.settings, "seed": data.seed},
    }
    save_distilled(path, synthetic, data.real.pixels, data.real.class_names, metadata)


def _save_picture(path: Path, synthetic: SyntheticSet, module: DistillationStage, title: str) -> None:
    picture = grid_of(synthetic.images, synthetic.labels, synthetic.stages, module, title)
    atomic_write_bytes(path, encode_png(picture))


def _save_stage(root: Path, module: DistillationStage, stage: int) -> None:
    images, title = module.data.union.stage(stage), f"{module.data.real.name}, new images"
    _save_picture(root / "images" / f"stage_{stage}.png", images, module, title)


def _is_complete(root: Path, union: SyntheticSet) -> bool:
    """Return whether all files of the stages exist, and the distilled set is intact."""
    pictures = [f"images/{name}.png" for name in ("union", *(f"stage_{i + 1}" for i in range(union.num_stages)))]
    try:
        read_stored(RunSummary, root / "summary.json")
        stored = DistilledDataset(root / "distilled.safetensors", stored=True).synthetic
    except PDDError:
        return False
    return stored.sha256() == union.sha256() and all((root / name).is_file() for name in pictures)


def _read_summary(path: Path) -> RunSummary:
    """Return the summary so far, or an empty one if it is damaged."""
    try:
        return read_stored(RunSummary, path) if path.exists() else RunSummary()
    except DamagedFileError as error:
        rank_zero_info(f"{error}: it is written anew, and lacks earlier evaluations")
        return RunSummary()
