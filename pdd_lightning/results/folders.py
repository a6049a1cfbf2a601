"""Read folders of runs and studies, with limits on what is shown of each, so that none can spoil the page."""

# ruff: noqa: PTH110, PTH112  (the methods of Path raise an error where access is denied)

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from markupsafe import Markup
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.folder import refuse_large_images
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.results.grids import count_previous, encode_png, labeled_grid
from pdd_lightning.results.schema import RunSummary, StudyResult
from pdd_lightning.results.tables import settings_as_text
from pdd_lightning.stored import MAX_YAML_BYTES, load_yaml, one_line, read_bytes, read_stored

T = TypeVar("T")

RUN_FILES = ("summary.json", "config.yaml", "checkpoints", "experts", "distilled.safetensors")
MAX_CLASSES, MAX_IMAGES, MAX_STAGES = 20, 5, 10
"""Limits of the grid of distilled images: classes, images per class and stage, stages."""
MAX_IMAGE_SIZE = 96
"""Side of a distilled image in pixels; larger ones are reduced."""
MAX_PICTURES, MAX_PIXELS, MAX_PICTURE_BYTES = 24, 2**24, 2**21
"""Pictures of a folder, and pixels and bytes of each."""
MAX_PAGE_BYTES = 2**24
"""Bytes of all pictures, shared equally by the folders; each may use a MiB in any case."""
MAX_SETTINGS, MAX_ROWS = 500, 300
SEED = "seed_everything"
RECORDING_SETTINGS = (
    "checkpoint_every", "ckpt_path", "pictures.", "trainer.default_root_dir", "trainer.enable_",
    "trainer.log_every_n_steps", "trainer.logger",
)  # fmt: skip
"""Prefixes of settings that do not affect what a run computes."""


class Picture(NamedTuple):
    """A picture as a `data:` URI, with its caption."""

    caption: str
    uri: Markup


@dataclass(frozen=True)
class Folder:
    """A folder: its pictures, and notes on what is missing, damaged or left out."""

    name: str
    path: Path
    notes: list[str]
    pictures: list[Picture]


@dataclass(frozen=True)
class Run(Folder):
    """A run, with its settings as text by dotted name."""

    summary: RunSummary
    settings: dict[str, str]

    def count(self, setting: str) -> int | None:
        """Return a setting that is a whole number, or None if it is not."""
        text = self.settings.get(setting, "")
        return int(text) if text.isdecimal() and len(text) <= 12 else None


@dataclass(frozen=True)
class Study(Folder):
    """A study."""

    result: StudyResult


class Folders(NamedTuple):
    """What a page shows; of broken folders only the reason."""

    runs: list[Run]
    studies: list[Study]
    broken: list[Folder]


def read_folders(paths: Sequence[str | Path], check: Callable[[Folder], object] | None = None) -> Folders:
    """Read folders of runs and studies.

    Args:
        paths: Folders; one that holds neither a run nor a study stands for those inside it. Files are skipped.
        check: Called for each folder; folders for which it raises an error are broken.

    Raises:
        ConfigError: A path does not exist, or there is no run and no study.
    """
    found = [folder for path in paths for folder in _candidates(Path(path))]
    unique = list({os.path.realpath(folder): folder for folder in found}.values())
    if not any(map(_has_results, unique)):
        raise ConfigError(f"no run found in {', '.join(map(str, paths))}: name folders that `pdd fit` wrote")
    max_bytes = max(MAX_PAGE_BYTES // len(unique), 2**20)
    folders = [_read(path, max_bytes, check) for path in unique]
    names = Counter(folder.name for folder in folders)
    folders = [folder if names[folder.name] == 1 else replace(folder, name=str(folder.path)) for folder in folders]
    return Folders(
        [folder for folder in folders if isinstance(folder, Run)],
        [folder for folder in folders if isinstance(folder, Study)],
        [folder for folder in folders if not isinstance(folder, Run | Study)],
    )


def first_items(items: list[T], limit: int, name: str, notes: list[str]) -> list[T]:
    """Return the first items of a list, and add a note if there are more."""
    if len(items) > limit:
        notes.append(f"the first {limit} of {len(items)} {name} are shown")
    return items[:limit]


def encode_picture(caption: str, png: bytes) -> Picture:
    """Return the content of a PNG file as a picture."""
    return Picture(caption, Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}"))


def _candidates(path: Path) -> list[Path]:
    if not os.path.exists(path):
        raise ConfigError(f"there is no folder {path}: name folders that `pdd fit` wrote")
    if not os.path.isdir(path):
        return []
    inside = [] if _has_results(path) else sorted(filter(_has_results, path.iterdir()))
    return inside or [path]


def _has_results(folder: Path) -> bool:
    """Return whether a folder holds a run or a study, which is assumed where access to it is denied."""
    return _is_closed(folder) or any(os.path.exists(folder / name) for name in ("study.json", *RUN_FILES))


def _is_closed(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK, effective_ids=effective)


def _read(path: Path, max_bytes: int, check: Callable[[Folder], object] | None) -> Folder:
    name, notes = Path(os.path.realpath(path)).name, list[str]()
    try:
        folder = (_read_study if os.path.exists(path / "study.json") else _read_run)(path, name, notes)
        if check:
            check(folder)
        return replace(folder, pictures=_limited(folder.pictures, max_bytes, notes))
    except Exception as error:  # of any type: the other folders must be shown
        return Folder(name, path, [one_line(error)], [])


def _read_study(path: Path, name: str, notes: list[str]) -> Study:
    result = read_stored(StudyResult, path / "study.json")
    result = result.model_copy(update={"rows": first_items(result.rows, MAX_ROWS, "rows", notes)})
    return Study(name, path, notes, _read_png(path / "plot.png", notes), result)


def _read_run(path: Path, name: str, notes: list[str]) -> Run:
    """Read a run; what cannot be read besides its summary is noted."""
    if not os.path.exists(path / "summary.json"):
        raise DataError(_reason_for_no_summary(path))
    summary = read_stored(RunSummary, path / "summary.json")
    rows = first_items(summary.evaluation, MAX_ROWS, "evaluated rows", notes)
    summary = summary.model_copy(update={"evaluation": rows})
    run = Run(name, path, notes, _read_pictures(path, notes), summary, _read_settings(path, summary, notes))
    finished, planned = len(summary.stages), run.count("stages.num_stages")
    if planned is not None and finished < planned:
        notes.append(f"{finished} of {planned} stages are finished")
        if os.path.exists(path / "last_good.safetensors"):
            notes.append("a loss was not finite: the last good images are in last_good.safetensors")
    return run


def _reason_for_no_summary(path: Path) -> str:
    if _is_closed(path):
        return "access is denied"
    if not _has_results(path):
        return "it holds no run and no study"
    has_set = os.path.exists(path / "distilled.safetensors")
    reason = "it holds a distilled set, but no run" if has_set else "no stage is finished yet"
    return f"{reason}: there is no summary.json"


def _read_settings(path: Path, summary: RunSummary, notes: list[str]) -> dict[str, str]:
    """Read the configuration; if that fails, take the method and its settings from the summary."""
    try:
        config: Any = load_yaml(read_bytes(path / "config.yaml", MAX_YAML_BYTES).decode())
        if not isinstance(config, dict):
            raise DataError("it holds no mapping")
        settings = settings_as_text(config)
    except Exception as error:  # many unrelated types
        notes.append(f"config.yaml cannot be read: {one_line(error)}")
        method = summary.settings.get("method", "not stated")
        init_args = {name: value for name, value in summary.settings.items() if name != "method"}
        settings = settings_as_text({SEED: summary.seed, "model": {"class_path": method, "init_args": init_args}})
    relevant = [item for item in settings.items() if not item[0].startswith(RECORDING_SETTINGS)]
    return dict(first_items(relevant, MAX_SETTINGS, "settings", notes))


def _read_pictures(path: Path, notes: list[str]) -> list[Picture]:
    """Return the distilled images and the run's other pictures; if the set cannot be read, all pictures."""
    try:
        files = sorted(file for file in (path / "images").iterdir() if file.suffix == ".png")
    except OSError:
        files = []
    pictures = []
    try:
        pictures.append(_draw_distilled(path / "distilled.safetensors"))
        files = [file for file in files if not file.stem.startswith(("union", "stage_"))]
    except Exception as error:  # many unrelated types
        notes.append(one_line(error))
    for file in first_items(files, MAX_PICTURES - len(pictures), "pictures in images/", notes):
        pictures += _read_png(file, notes)
    return pictures


def _limited(pictures: list[Picture], max_bytes: int, notes: list[str]) -> list[Picture]:
    """Return the pictures that fit into a number of bytes, in order."""
    fitting = []
    for picture in pictures:
        if len(picture.uri) <= max_bytes:
            max_bytes -= len(picture.uri)
            fitting.append(picture)
        else:
            notes.append(f"left out, since the page would become too large: {picture.caption}")
    return fitting


def _draw_distilled(path: Path) -> Picture:
    """Draw the stored images of a distilled set, within the limits of the grid."""
    dataset = DistilledDataset(path, stored=True)
    channels, size = dataset.images.shape[1], dataset.images.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"{path.name}: images of {channels} channels are not shown")
    classes, stages = hard_labels(dataset.labels), dataset.stages
    index = torch.tensor(count_previous(zip(stages.tolist(), classes.tolist(), strict=True)))
    shown = (classes < MAX_CLASSES) & (index < MAX_IMAGES) & (stages <= MAX_STAGES)
    names = [name[:40] for name in dataset.class_names[:MAX_CLASSES]]
    caption = "distilled images"
    if not bool(shown.all()):
        caption += f", the first {MAX_IMAGES} of each stage and class, of {len(names)} classes"
    if dataset.num_stages > MAX_STAGES:
        caption += f" and {MAX_STAGES} stages"
    pixels = dataset.pixels.decode(dataset.images[shown]).clamp(0, 1)
    if size > MAX_IMAGE_SIZE:
        pixels = F.interpolate(pixels, size=MAX_IMAGE_SIZE, mode="area")
        caption += f", reduced from {size} pixels"
    return encode_picture(caption, encode_png(labeled_grid(pixels, classes[shown], stages[shown], names, "")))


def _read_png(path: Path, notes: list[str]) -> list[Picture]:
    """Return the picture in a file; if it cannot be read, add a note."""
    try:
        data = read_bytes(path, MAX_PICTURE_BYTES)
        with refuse_large_images(), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(f"it has {picture.width} x {picture.height} pixels")
            picture.load()
    except Exception as error:  # the decoder raises many unrelated types
        notes.append(f"the picture {path.name} cannot be read: {one_line(error)}")
        return []
    return [encode_picture(path.stem.replace("_", " "), data)]
