"""Folders of runs and studies: which there are, and what can be shown of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError, PDDError
from pdd_lightning.results.images import labelled_grid, png_of, ranks
from pdd_lightning.results.schema import RunSummary, StudyResult, read_stored
from pdd_lightning.results.tables import flatten

OF_A_RUN = ("summary.json", "config.yaml", "checkpoints", "experts", "distilled.safetensors")
MOST_CLASSES = 20
MOST_IMAGES = 5
"""More classes, and more images of a class and stage, are left out: the page shall stay small."""
SEED = "seed_everything"
NOT_OF_THE_METHOD = (
    "checkpoint_every",
    "ckpt_path",
    "pictures.",
    "trainer.default_root_dir",
    "trainer.enable_",
    "trainer.log_every_n_steps",
    "trainer.logger",
)
"""Beginnings of the names of settings that say where and how a run was recorded, not what it computed."""


@dataclass(frozen=True)
class Picture:
    """A picture with its own bytes, as a `data:` URI."""

    caption: str
    uri: str

    @classmethod
    def of_png(cls, caption: str, data: bytes) -> Picture:
        """A picture of the content of a PNG file."""
        return cls(caption, f"data:image/png;base64,{base64.b64encode(data).decode()}")


@dataclass(frozen=True)
class Broken:
    """A folder of which nothing can be shown, and why."""

    name: str
    folder: Path
    reason: str


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: The folder's name.
        folder: The folder.
        summary: Stages and evaluated rows.
        settings: Settings by dotted name, as text.
        pictures: Distilled images, and what else there are pictures of.
        notes: What is missing or damaged.
    """

    name: str
    folder: Path
    summary: RunSummary
    settings: dict[str, str]
    pictures: list[Picture]
    notes: list[str]


@dataclass(frozen=True)
class Study:
    """A study folder: its results, its plot, and notes on what is missing or damaged."""

    name: str
    folder: Path
    result: StudyResult
    plot: list[Picture]
    notes: list[str]


@dataclass(frozen=True)
class Folders:
    """All that a page is made of."""

    runs: list[Run]
    studies: list[Study]
    broken: list[Broken]


def read_folders(paths: Sequence[str | Path]) -> Folders:
    """Reads folders of runs and studies; a folder that is neither stands for those in it. Files are passed over.

    Raises:
        ConfigError: A path does not exist, or there is no run and no study.
    """
    candidates = [folder for path in paths for folder in _candidates(Path(path))]
    folders = list({folder.resolve(): folder for folder in candidates}.values())
    if not any(map(_is_ours, folders)):
        raise ConfigError(f"no run found in {', '.join(map(str, paths))}: name folders that `pdd fit` wrote")
    names = [folder.resolve().name for folder in folders]
    read: list[Run | Study | Broken] = [_read(folder) for folder in folders]
    # Folders of the same name are told apart by the paths that were given.
    read = [
        one if names.count(name) == 1 else replace(one, name=str(one.folder))
        for one, name in zip(read, names, strict=True)
    ]
    return Folders(
        [one for one in read if isinstance(one, Run)],
        [one for one in read if isinstance(one, Study)],
        [one for one in read if isinstance(one, Broken)],
    )


def _candidates(path: Path) -> list[Path]:
    if not path.exists():
        raise ConfigError(f"there is no folder {path}: name folders that `pdd fit` wrote")
    if not path.is_dir():
        return []
    inside = [] if _is_ours(path) else sorted(folder for folder in path.iterdir() if _is_ours(folder))
    return inside or [path]


def _is_ours(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("study.json", *OF_A_RUN))


def _read(folder: Path) -> Run | Study | Broken:
    name = folder.resolve().name
    if not _is_ours(folder):
        return Broken(name, folder, "it holds no run and no study")
    try:
        return _read_study(folder, name) if (folder / "study.json").exists() else _read_run(folder, name)
    except PDDError as error:
        return Broken(name, folder, str(error))


def _read_study(folder: Path, name: str) -> Study:
    notes: list[str] = []
    result = read_stored(StudyResult, folder / "study.json")
    return Study(name, folder, result, _read_png(folder / "plot.png", notes), notes)


def _read_run(folder: Path, name: str) -> Run:
    """Reads a run folder; what cannot be read is noted, as long as there are figures to show."""
    if not (folder / "summary.json").exists():
        if (folder / "distilled.safetensors").exists():
            raise DamagedFileError("it holds a distilled set, but no run: there is no summary.json")
        raise DamagedFileError("no stage is finished yet: there is no summary.json")
    summary = read_stored(RunSummary, folder / "summary.json")
    notes: list[str] = []
    settings = _settings(folder / "config.yaml", summary, notes)
    pictures = _pictures(folder, notes)
    planned = settings.get("stages.num_stages", "")
    if planned.isdecimal() and len(summary.stages) < int(planned):
        notes.append(f"{len(summary.stages)} of {planned} stages are finished")
        if (folder / "last_good.safetensors").exists():
            notes.append("a loss was not finite: the last good images are in last_good.safetensors")
    return Run(name, folder, summary, settings, pictures, notes)


def _settings(path: Path, summary: RunSummary, notes: list[str]) -> dict[str, str]:
    """Settings by dotted name; those of the method alone, from the summary, where the configuration cannot be read."""
    try:
        config: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
        model = dict(summary.settings)
        method = model.pop("method", "not stated")
        config = {SEED: summary.seed, "model": {"class_path": method, "init_args": model}}
    return {name: text for name, text in flatten(config).items() if not name.startswith(NOT_OF_THE_METHOD)}


def _pictures(folder: Path, notes: list[str]) -> list[Picture]:
    """The distilled images, and pictures that show something else; of a set that cannot be read, all pictures."""
    paths = sorted((folder / "images").glob("*.png"))
    try:
        distilled = [_distilled_images(folder / "distilled.safetensors")]
        paths = [path for path in paths if not path.stem.startswith(("union", "stage_"))]
    except PDDError as error:
        distilled = []
        notes.append(str(error))
    return distilled + [picture for path in paths for picture in _read_png(path, notes)]


def _distilled_images(path: Path) -> Picture:
    """The stored images of a distilled set, or as many of them as a page has room for."""
    dataset = DistilledDataset(path, stored=True)
    pixels, names = dataset.to_pixels(), dataset.class_names[:MOST_CLASSES]
    if pixels.shape[1] not in (1, 3):
        raise DataError(f"{path.name}: images of {pixels.shape[1]} channels are not shown")
    classes = dataset.labels if dataset.labels.ndim == 1 else dataset.labels.argmax(1)
    rank = torch.tensor(ranks(zip(dataset.stages.tolist(), classes.tolist(), strict=True)))
    kept = (classes < MOST_CLASSES) & (rank < MOST_IMAGES)
    caption = "distilled images"
    if not bool(kept.all()):
        caption += f", the first {MOST_IMAGES} of each stage and class, of {len(names)} classes"
    picture = labelled_grid(pixels[kept], classes[kept], dataset.stages[kept], names, "")
    return Picture.of_png(caption, png_of(picture))


def _read_png(path: Path, notes: list[str]) -> list[Picture]:
    """The picture in a file, or a note why there is none."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        notes.append(f"the picture {path.name} cannot be read")
        return []
    return [Picture.of_png(path.stem.replace("_", " "), data)]
