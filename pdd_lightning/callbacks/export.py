"""The run folder: the distilled set, its pictures, and the figures of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from pdd_lightning import __version__
from pdd_lightning.data import ForgettingScores
from pdd_lightning.data.distilled import DistilledDataset, save_distilled
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.errors import DamagedFileError, NonFiniteLossError, PDDError
from pdd_lightning.files import alone, atomic_write_bytes
from pdd_lightning.progression import StageAdvance
from pdd_lightning.progression.observer import StageObserver, stage_module
from pdd_lightning.results.grids import encode_png, example_grid, labeled_grid
from pdd_lightning.results.schema import EvaluatedRow, RunSummary, StageReport, write_stored
from pdd_lightning.stages import DistillationStage
from pdd_lightning.stored import MOST_RATE, read_stored


class ExportRun(StageObserver):
    """Writes what users take home into `trainer.default_root_dir`, after each stage and by atomic renames.

    - `distilled.safetensors`: the union of all finished stages, see `pdd_lightning.data.DistilledDataset`.
    - `forgetting.npz`, `images/easiest.png` and `images/hardest.png`: the forgetting scores of the real examples, where
      the run has them, and the examples at either end.
    - `images/stage_<i>.png` and `images/union.png`: labelled grids in true colours.
    - `summary.json`: settings, a report per stage, and the rows of every evaluation.
    - `last_good.safetensors`: only when a loss was not finite; the union with the last good images of the
      unfinished stage.
    """

    @rank_zero_only
    def on_scores_ready(self, trainer: Trainer, stage_module: DistillationStage, scores: ForgettingScores) -> None:
        """Writes the scores and the pictures of the easiest and the hardest examples."""
        root, real = Path(trainer.default_root_dir), stage_module.data.real
        scores.save(root / "forgetting.npz")
        for name in ("easiest", "hardest"):
            picture = example_grid(real.train, scores, real.class_names, real.name, name == "hardest")
            atomic_write_bytes(root / "images" / f"{name}.png", encode_png(picture))

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Writes the distilled set, the pictures and the stages' reports."""
        root = Path(trainer.default_root_dir)
        union = stage_module.data.union
        _save_set(root / "distilled.safetensors", union, stage_module)
        name = stage_module.data.real.name
        _save_stage(root, stage_module, history[-1].stage)
        _save_picture(root / "images" / "union.png", union, stage_module, f"{name}, {len(union)} distilled images")
        data = stage_module.data
        about = {
            "package_version": __version__,
            "dataset": {"name": data.real.name, "fingerprint": data.real.fingerprint},
            "seed": data.seed,
            "settings": stage_module.settings,
            "stages": history,
        }
        path = root / "summary.json"
        with alone(path):
            write_stored(path, _read_summary(path).model_copy(update=about))

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes again what was deleted or damaged since its stage ended."""
        module, root = stage_module(pl_module), Path(trainer.default_root_dir)
        history = [report for each in _advances(trainer) for report in each.history]
        if not history or _is_whole(root, module.data.union):
            return
        for stage in range(1, len(history)):
            _save_stage(root, module, stage)
        self.on_stage_end(trainer, module, history)
        rank_zero_info(f"What was missing or damaged in {root} was written again")

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Adds the rows to the summary, in place of earlier rows for the same part of the data."""
        path, parts = Path(trainer.default_root_dir) / "summary.json", {row["part"] for row in rows}
        with alone(path):  # a run may be evaluated while it goes on
            summary = _read_summary(path)
            kept = [row for row in summary.evaluation if row.part not in parts]
            evaluation = kept + [EvaluatedRow(**row) for row in rows]
            write_stored(path, summary.model_copy(update={"evaluation": evaluation}))

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last good images when a loss was not finite."""
        if not isinstance(exception, NonFiniteLossError):
            return
        module = stage_module(pl_module)
        path, rate = Path(trainer.default_root_dir) / "last_good.safetensors", module.learned_lr
        usable = rate if rate is not None and 0 < rate <= MOST_RATE else None  # the rate may be what went wrong
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
    real = module.data.real
    pixels = real.pixels.decode(synthetic.images)
    picture = labeled_grid(pixels, synthetic.labels, synthetic.stages, real.class_names, title)
    atomic_write_bytes(path, encode_png(picture))


def _save_stage(root: Path, module: DistillationStage, stage: int) -> None:
    images, title = module.data.union.stage(stage), f"{module.data.real.name}, new images"
    _save_picture(root / "images" / f"stage_{stage}.png", images, module, title)


def _is_whole(root: Path, union: SyntheticSet) -> bool:
    """Whether all that the stages left is there, and the distilled set undamaged."""
    pictures = [f"images/{name}.png" for name in ("union", *(f"stage_{i + 1}" for i in range(union.num_stages)))]
    try:
        read_stored(RunSummary, root / "summary.json")
        stored = DistilledDataset(root / "distilled.safetensors", stored=True).synthetic
    except PDDError:
        return False
    return stored.sha256() == union.sha256() and all((root / name).is_file() for name in pictures)


def _read_summary(path: Path) -> RunSummary:
    """The summary so far; a damaged one is begun anew, for it can be."""
    try:
        return read_stored(RunSummary, path) if path.exists() else RunSummary()
    except DamagedFileError as error:
        rank_zero_info(f"{error}: it is written anew, and lacks earlier evaluations")
        return RunSummary()


def _advances(trainer: Trainer) -> list[StageAdvance]:
    return [each for each in trainer.callbacks if isinstance(each, StageAdvance)]  # type: ignore[attr-defined]
