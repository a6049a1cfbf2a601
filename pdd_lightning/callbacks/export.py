"""The run folder: the distilled set, its pictures, and the figures of the run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image

from pdd_lightning import __version__
from pdd_lightning.callbacks.observer import StageObserver, StageReport, stage_module
from pdd_lightning.callbacks.pictures import example_grid, labelled_grid
from pdd_lightning.data import ForgettingScores, SyntheticSet, save_distilled
from pdd_lightning.errors import NonFiniteLossError
from pdd_lightning.files import atomic_write_bytes, atomic_write_json
from pdd_lightning.stages import DistillationStage


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
            _write_png(root / "images" / f"{name}.png", picture)

    @rank_zero_only
    def on_stage_end(self, trainer: Trainer, stage_module: DistillationStage, history: list[StageReport]) -> None:
        """Writes the distilled set, the pictures and the stages' reports."""
        root = Path(trainer.default_root_dir)
        union = stage_module.data.union
        _save_set(root / "distilled.safetensors", union, stage_module)
        stage = history[-1].stage
        name = stage_module.data.real.name
        _save_picture(root / "images" / f"stage_{stage}.png", union.stage(stage), stage_module, f"{name}, new images")
        _save_picture(root / "images" / "union.png", union, stage_module, f"{name}, {len(union)} distilled images")
        _update_summary(root, _about(stage_module) | {"stages": [report.as_dict() for report in history]})

    @rank_zero_only
    def on_run_evaluated(self, trainer: Trainer, stage_module: DistillationStage, rows: list[dict[str, Any]]) -> None:
        """Adds the rows to the summary, in place of earlier rows for the same part of the data."""
        root = Path(trainer.default_root_dir)
        parts = {row["part"] for row in rows}
        kept = [row for row in _read_summary(root).get("evaluation", []) if row["part"] not in parts]
        _update_summary(root, {"evaluation": kept + rows})

    @rank_zero_only
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves the last good images when a loss was not finite."""
        if not isinstance(exception, NonFiniteLossError):
            return
        module = stage_module(pl_module)
        path = Path(trainer.default_root_dir) / "last_good.safetensors"
        _save_set(path, module.frozen.append(*module.last_finite, module.learned_lr), module)
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
    picture = labelled_grid(pixels, synthetic.labels, synthetic.stages, real.class_names, title)
    _write_png(path, picture)


def _write_png(path: Path, picture: Image.Image) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    atomic_write_bytes(path, buffer.getvalue())


def _about(module: DistillationStage) -> dict[str, Any]:
    data = module.data
    return {
        "package_version": __version__,
        "dataset": {"name": data.real.name, "fingerprint": data.real.fingerprint},
        "seed": data.seed,
        "settings": module.settings,
    }


def _read_summary(root: Path) -> dict[str, Any]:
    path = root / "summary.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _update_summary(root: Path, entries: dict[str, Any]) -> None:
    atomic_write_json(root / "summary.json", {**_read_summary(root), **entries})
