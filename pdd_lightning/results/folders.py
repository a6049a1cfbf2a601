"""Folders of runs and studies: which there are, and what can be shown of them.

Whatever is in a folder, the others are shown: what is read and shown of each is bounded here and in `page.py`.
"""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from markupsafe import Markup
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.folder import refuse_large_images
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.results.grids import labelled_grid, png_of, ranks
from pdd_lightning.results.schema import RunSummary, StudyResult
from pdd_lightning.results.tables import flatten
from pdd_lightning.stored import load_yaml, read_bytes, read_stored

OF_A_RUN = ("summary.json", "config.yaml", "checkpoints", "experts", "distilled.safetensors")
MOST_CLASSES, MOST_IMAGES, MOST_STAGES = 20, 5, 10
"""More classes, images of a class and stage, and stages are not among the distilled images that are shown."""
MOST_SIDE = 96
"""Pixels per side of a distilled image; larger ones are reduced."""
MOST_PIXELS = 2**24
"""Pixels of a picture."""
MOST_PICTURES = 24
"""Pictures of a folder."""
MOST_PICTURE_BYTES = 2**21
"""Bytes of a picture."""
MOST_PAGE_BYTES = 2**24
"""Characters of all pictures, which the folders share equally; each has a million at least."""
MOST_JSON_BYTES, MOST_CONFIG_BYTES, MOST_SET_BYTES = 2**24, 2**18, 2**30
"""Bytes of a summary or study, of a configuration, and of a distilled set that are read."""
MOST_SETTINGS = 500
MOST_ROWS = 300
"""Evaluated rows of a run, and rows of a study."""
SEED = "seed_everything"
NOT_OF_THE_METHOD = (
    "checkpoint_every", "ckpt_path", "pictures.", "trainer.default_root_dir", "trainer.enable_",
    "trainer.log_every_n_steps", "trainer.logger",
)  # fmt: skip
"""Beginnings of the names of settings that say where and how a run was recorded, not what it computed."""


class Picture(NamedTuple):
    """What a picture shows, and its bytes as a `data:` URI."""

    caption: str
    uri: Markup


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
    folders = list({os.path.realpath(folder): folder for folder in candidates}.values())
    if not any(map(_is_ours, folders)):
        raise ConfigError(f"no run found in {', '.join(map(str, paths))}: name folders that `pdd fit` wrote")
    read = [_read(folder, _share(len(folders))) for folder in folders]
    names = [one.name for one in read]
    # Folders of the same name are told apart by the paths that were given.
    read = [one if names.count(one.name) == 1 else replace(one, name=str(one.path)) for one in read]
    return Folders(
        [one for one in read if isinstance(one, Run)],
        [one for one in read if isinstance(one, Study)],
        [one for one in read if not isinstance(one, (Run, Study))],
    )


def reason_of(error: Exception) -> str:
    """What went wrong, in one line."""
    line = str(error).partition("\n")[0] or type(error).__name__
    return line if len(line) <= 300 else f"{line[:300]} .."


def _share(count: int) -> int:
    """Bytes of the pictures of each of so many folders."""
    return max(MOST_PAGE_BYTES // count, 2**20)


def _candidates(path: Path) -> list[Path]:
    if not _there(path):
        raise ConfigError(f"there is no folder {path}: name folders that `pdd fit` wrote")
    if not os.path.isdir(path):  # noqa: PTH112  (Path's raises where one may not look)
        return []
    try:
        inside = [] if _is_ours(path) else sorted(folder for folder in path.iterdir() if _is_shown(folder))
    except OSError:
        inside = []
    return inside or [path]


def _is_shown(folder: Path) -> bool:
    """Whether a folder inside another is ours, or may be: one cannot tell."""
    return _is_ours(folder) or _is_closed(folder)


def _is_closed(folder: Path) -> bool:
    """Whether one may not look into a folder."""
    return os.path.isdir(folder) and not os.path.exists(f"{folder}/.")  # noqa: PTH110, PTH112


def _is_ours(folder: Path) -> bool:
    return any(_there(folder / name) for name in ("study.json", *OF_A_RUN))


def _there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  (Path's raises where one may not look)


def _read(path: Path, share: int) -> Folder:
    name = Path(os.path.realpath(path)).name
    try:
        return _read_study(path, name, share) if _there(path / "study.json") else _read_run(path, name, share)
    except Exception as error:  # of whatever type: it must not cost the other folders their place
        return Folder(name, path, [reason_of(error)])


def _read_study(path: Path, name: str, share: int) -> Study:
    notes: list[str] = []
    result = read_stored(StudyResult, _bounded(path / "study.json", MOST_JSON_BYTES))
    if len(result.rows) > MOST_ROWS:
        notes.append(f"the first {MOST_ROWS} of {len(result.rows)} rows are shown")
        result = result.model_copy(update={"rows": result.rows[:MOST_ROWS]})
    return Study(name, path, notes, result, _within(share, _read_png(path / "plot.png", notes), notes))


def _read_run(path: Path, name: str, share: int) -> Run:
    """Reads a run folder; what cannot be read is noted, as long as there are figures to show."""
    if not _is_ours(path):
        raise DataError("one may not look into it" if _is_closed(path) else "it holds no run and no study")
    if not _there(path / "summary.json"):
        if _there(path / "distilled.safetensors"):
            raise DataError("it holds a distilled set, but no run: there is no summary.json")
        raise DataError("no stage is finished yet: there is no summary.json")
    notes: list[str] = []
    summary = read_stored(RunSummary, _bounded(path / "summary.json", MOST_JSON_BYTES))
    if len(summary.evaluation) > MOST_ROWS:
        notes.append(f"the first {MOST_ROWS} of {len(summary.evaluation)} evaluated rows are shown")
        summary = summary.model_copy(update={"evaluation": summary.evaluation[:MOST_ROWS]})
    settings = _settings(path, summary, notes)
    run = Run(name, path, notes, summary, settings, _within(share, _pictures(path, notes), notes))
    planned = run.settings.get("stages.num_stages", "")
    if planned.isdecimal() and len(summary.stages) < int(planned):
        notes.append(f"{len(summary.stages)} of {planned} stages are finished")
        if _there(path / "last_good.safetensors"):
            notes.append("a loss was not finite: the last good images are in last_good.safetensors")
    return run


def _bounded(path: Path, most: int) -> Path:
    """The path of a file, if it is one and not too large to be read for a page."""
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path.name}: {error.strerror}") from error
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        raise DamagedFileError(f"{path.name} is not read: it is no file, or has more than {most} bytes")
    return path


def _settings(path: Path, summary: RunSummary, notes: list[str]) -> dict[str, str]:
    """Settings by dotted name; those of the method alone, from the summary, where the configuration cannot be read."""
    try:
        config: Any = load_yaml(read_bytes(path / "config.yaml", MOST_CONFIG_BYTES).decode())
        if not isinstance(config, dict):
            raise DamagedFileError("it holds no mapping")
        settings = flatten(config)
    except Exception as error:  # many unrelated types
        notes.append(f"config.yaml cannot be read: {reason_of(error)}")
        model = {"class_path": summary.settings.get("method", "not stated"), "init_args": dict(summary.settings)}
        model["init_args"].pop("method", None)
        settings = flatten({SEED: summary.seed, "model": model})
    kept = {name: text for name, text in settings.items() if not name.startswith(NOT_OF_THE_METHOD)}
    if len(kept) > MOST_SETTINGS:
        notes.append(f"the first {MOST_SETTINGS} of {len(kept)} settings are shown")
    return dict(list(kept.items())[:MOST_SETTINGS])


def _pictures(path: Path, notes: list[str]) -> list[Picture]:
    """The distilled images, and pictures that show something else; of a set that cannot be read, all pictures."""
    try:
        files = sorted(file for file in (path / "images").iterdir() if file.suffix == ".png")
    except OSError:
        files = []
    try:
        distilled = [_distilled_images(path / "distilled.safetensors")]
        files = [file for file in files if not file.stem.startswith(("union", "stage_"))]
    except Exception as error:  # many unrelated types
        distilled = []
        notes.append(reason_of(error))
    most = MOST_PICTURES - len(distilled)
    if len(files) > most:
        notes.append(f"the first {most} of {len(files)} pictures in images/ are shown")
    return distilled + [picture for file in files[:most] for picture in _read_png(file, notes)]


def _within(share: int, pictures: list[Picture], notes: list[str]) -> list[Picture]:
    """Those pictures that fit the share of a folder, in order."""
    kept = []
    for picture in pictures:
        if len(picture.uri) <= share:
            share -= len(picture.uri)
            kept.append(picture)
        else:
            notes.append(f"left out, since the page would become too large: {picture.caption}")
    return kept


def _distilled_images(path: Path) -> Picture:
    """The stored images of a distilled set, or as many of them as a page has room for."""
    dataset = DistilledDataset(_bounded(path, MOST_SET_BYTES), stored=True)
    channels, side = dataset.images.shape[1], dataset.images.shape[-1]
    if channels not in (1, 3):
        raise DataError(f"{path.name}: images of {channels} channels are not shown")
    classes = dataset.labels if dataset.labels.ndim == 1 else dataset.labels.argmax(1)
    rank = torch.tensor(ranks(zip(dataset.stages.tolist(), classes.tolist(), strict=True)))
    kept = (classes < MOST_CLASSES) & (rank < MOST_IMAGES) & (dataset.stages <= MOST_STAGES)
    names = [name[:40] for name in dataset.class_names[:MOST_CLASSES]]
    part = "" if bool(kept.all()) else f", the first {MOST_IMAGES} of each stage and class, of {len(names)} classes"
    if dataset.num_stages > MOST_STAGES:
        part += f" and {MOST_STAGES} stages"
    pixels = dataset.pixels.decode(dataset.images[kept]).clamp(0, 1)
    if side > MOST_SIDE:
        pixels, part = F.interpolate(pixels, size=MOST_SIDE, mode="area"), f"{part}, reduced from {side} pixels"
    picture = labelled_grid(pixels, classes[kept], dataset.stages[kept], names, "")
    return picture_of(f"distilled images{part}", png_of(picture))


def picture_of(caption: str, png: bytes) -> Picture:
    """The content of a PNG file, to be shown inside a page."""
    return Picture(caption, Markup(f"data:image/png;base64,{base64.b64encode(png).decode()}"))


def _read_png(path: Path, notes: list[str]) -> list[Picture]:
    """The picture in a file, or a note why there is none."""
    try:
        data = read_bytes(path, MOST_PICTURE_BYTES)
        with refuse_large_images(), Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise DataError(f"it has {picture.width} x {picture.height} pixels")
            picture.load()
    except Exception as error:  # the decoder raises many unrelated types
        notes.append(f"the picture {path.name} cannot be read: {reason_of(error)}")
        return []
    return [picture_of(path.stem.replace("_", " "), data)]
