"""Folders of runs and studies: which there are, and what can be shown of them."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError, PDDError
from pdd_lightning.results.grids import labelled_grid, png_of, ranks
from pdd_lightning.results.schema import RunSummary, StudyResult, read_stored
from pdd_lightning.results.tables import flatten

OF_A_RUN = ("summary.json", "config.yaml", "checkpoints", "experts", "distilled.safetensors")
MOST_CLASSES, MOST_IMAGES = 20, 5
"""More classes, and more images of a class and stage, are left out: the page shall stay small."""
SEED = "seed_everything"
NOT_OF_THE_METHOD = (
    "checkpoint_every", "ckpt_path", "pictures.", "trainer.default_root_dir", "trainer.enable_",
    "trainer.log_every_n_steps", "trainer.logger",
)  # fmt: skip
"""Beginnings of the names of settings that say where and how a run was recorded, not what it computed."""


class Picture(NamedTuple):
    """What a picture shows, and its bytes as a `data:` URI."""

    caption: str
    uri: str


@dataclass(frozen=True)
class Folder:
    """A folder, by its name, and notes on what is missing or damaged."""

    name: str
    path: Path
    notes: list[str]


@dataclass(frozen=True)
class Run(Folder):
    """A run: its figures, settings by dotted name, distilled images, and what else there are pictures of."""

    summary: RunSummary
    settings: dict[str, str]
    pictures: list[Picture]


@dataclass(frozen=True)
class Study(Folder):
    """A study: its results, and its plot where it can be read."""

    result: StudyResult
    plot: list[Picture]


class Folders(NamedTuple):
    """All that a page is made of; of broken folders nothing can be shown but why."""

    runs: list[Run]
    studies: list[Study]
    broken: list[Folder]


def read_folders(paths: Sequence[str | Path]) -> Folders:
    """Reads folders of runs and studies; a folder that is neither stands for those in it. Files are passed over.

    Raises:
        ConfigError: A path does not exist, or there is no run and no study.
    """
    candidates = [folder for path in paths for folder in _candidates(Path(path))]
    folders = list({folder.resolve(): folder for folder in candidates}.values())
    if not any(map(_is_ours, folders)):
        raise ConfigError(f"no run found in {', '.join(map(str, paths))}: name folders that `pdd fit` wrote")
    read = [_read(folder) for folder in folders]
    names = [one.name for one in read]
    # Folders of the same name are told apart by the paths that were given.
    read = [one if names.count(one.name) == 1 else replace(one, name=str(one.path)) for one in read]
    return Folders(
        [one for one in read if isinstance(one, Run)],
        [one for one in read if isinstance(one, Study)],
        [one for one in read if not isinstance(one, (Run, Study))],
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


def _read(path: Path) -> Folder:
    name = path.resolve().name
    try:
        if (path / "study.json").exists():
            result, notes = read_stored(StudyResult, path / "study.json"), list[str]()
            return Study(name, path, notes, result, _read_png(path / "plot.png", notes))
        return _read_run(path, name)
    except PDDError as error:
        return Folder(name, path, [str(error)])


def _read_run(path: Path, name: str) -> Run:
    """Reads a run folder; what cannot be read is noted, as long as there are figures to show."""
    if not _is_ours(path):
        raise DataError("it holds no run and no study")
    if not (path / "summary.json").exists():
        if (path / "distilled.safetensors").exists():
            raise DataError("it holds a distilled set, but no run: there is no summary.json")
        raise DataError("no stage is finished yet: there is no summary.json")
    summary, notes = read_stored(RunSummary, path / "summary.json"), list[str]()
    run = Run(name, path, notes, summary, _settings(path, summary, notes), _pictures(path, notes))
    planned = run.settings.get("stages.num_stages", "")
    if planned.isdecimal() and len(summary.stages) < int(planned):
        notes.append(f"{len(summary.stages)} of {planned} stages are finished")
        if (path / "last_good.safetensors").exists():
            notes.append("a loss was not finite: the last good images are in last_good.safetensors")
    return run


def _settings(path: Path, summary: RunSummary, notes: list[str]) -> dict[str, str]:
    """Settings by dotted name; those of the method alone, from the summary, where the configuration cannot be read."""
    try:
        config: Any = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise DamagedFileError("it holds no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        notes.append(f"config.yaml cannot be read: {str(error).splitlines()[0]}")
        model = {"class_path": summary.settings.get("method", "not stated"), "init_args": dict(summary.settings)}
        model["init_args"].pop("method", None)
        config = {SEED: summary.seed, "model": model}
    return {name: text for name, text in flatten(config).items() if not name.startswith(NOT_OF_THE_METHOD)}


def _pictures(path: Path, notes: list[str]) -> list[Picture]:
    """The distilled images, and pictures that show something else; of a set that cannot be read, all pictures."""
    files = sorted((path / "images").glob("*.png"))
    try:
        distilled = [_distilled_images(path / "distilled.safetensors")]
        files = [file for file in files if not file.stem.startswith(("union", "stage_"))]
    except PDDError as error:
        distilled = []
        notes.append(str(error))
    return distilled + [picture for file in files for picture in _read_png(file, notes)]


def _distilled_images(path: Path) -> Picture:
    """The stored images of a distilled set, or as many of them as a page has room for."""
    dataset = DistilledDataset(path, stored=True)
    pixels, names = dataset.to_pixels(), dataset.class_names[:MOST_CLASSES]
    if pixels.shape[1] not in (1, 3):
        raise DataError(f"{path.name}: images of {pixels.shape[1]} channels are not shown")
    classes = dataset.labels if dataset.labels.ndim == 1 else dataset.labels.argmax(1)
    rank = torch.tensor(ranks(zip(dataset.stages.tolist(), classes.tolist(), strict=True)))
    kept = (classes < MOST_CLASSES) & (rank < MOST_IMAGES)
    part = "" if bool(kept.all()) else f", the first {MOST_IMAGES} of each stage and class, of {len(names)} classes"
    picture = labelled_grid(pixels[kept], classes[kept], dataset.stages[kept], names, "")
    return picture_of(f"distilled images{part}", png_of(picture))


def picture_of(caption: str, png: bytes) -> Picture:
    """The content of a PNG file, to be shown inside a page."""
    return Picture(caption, f"data:image/png;base64,{base64.b64encode(png).decode()}")


def _read_png(path: Path, notes: list[str]) -> list[Picture]:
    """The picture in a file, or a note why there is none."""
    try:
        data = path.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError):
        notes.append(f"the picture {path.name} cannot be read")
        return []
    return [picture_of(path.stem.replace("_", " "), data)]
