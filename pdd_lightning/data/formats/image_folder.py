"""A distilled set as image files: `train/<class>/stage<S>_<number>.png`."""

from __future__ import annotations

import re
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.folder import class_folders, image_files, read_images
from pdd_lightning.data.formats.content import Content
from pdd_lightning.data.formats.order import hard_labels
from pdd_lightning.data.splits import to_unit
from pdd_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

PART = "train"
_STAGE = re.compile(r"stage(\d+)_")
_OWN = re.compile(r"stage\d+_\d+\.png")


def read(folder: Path, real: RealDataModule) -> Content:
    """Read all images; classes by the names of their folders, stages by the names of the files.

    Raises:
        DataError: A folder is no class of the real data, there are no images, or one cannot be used.
    """
    labels_by_name = {folder_name(name): label for label, name in enumerate(real.class_names)}
    names = class_folders(folder / PART)
    unknown = sorted(set(names) - set(labels_by_name))
    if unknown:
        raise DataError(f"{folder / PART} has folders that are no classes of {real.name}: {', '.join(unknown)}")
    paths: list[Path] = []
    labels: list[int] = []
    for name in sorted(names, key=labels_by_name.__getitem__):
        found = image_files(folder / PART / name)
        paths += found
        labels += [labels_by_name[name]] * len(found)
    if not paths:
        raise DataError(f"no images found: looked for {folder / PART}/<class>/<image>")
    images = to_unit(read_images(paths, grayscale=real.image_shape[0] == 1))
    return Content("image folder", images, torch.tensor(labels), in_pixels=True, stages=_stages(paths))


def write(folder: Path, dataset: DistilledDataset) -> None:
    """Write the set, in place of one that was written before.

    Raises:
        ConfigError: Two classes would share a folder, or the folder to replace holds other files.
    """
    names = [folder_name(name) for name in dataset.class_names]
    if len(set(names)) < len(names) or any(name.startswith(".") or not name for name in names):
        raise ConfigError(f"class names cannot be used as names of folders: {', '.join(dataset.class_names)}")
    part = folder / PART
    _check_replaceable(part)
    partial, former = (folder / f".{PART}.{uuid.uuid4().hex}.tmp" for _ in range(2))
    try:
        _write_images(partial, dataset, names)
        if part.exists():
            part.rename(former)  # not deleted in its place: half of it would be taken for a set
        partial.rename(part)
    finally:
        if former.exists() and not part.exists():
            former.rename(part)
        for rest in (partial, former):
            shutil.rmtree(rest, ignore_errors=True)


def folder_name(class_name: str) -> str:
    """Return a class's name as that of a folder."""
    return re.sub(r"[/\\]", "_", class_name)


def to_bytes_scale(dataset: DistilledDataset) -> Tensor:
    """Return the images as whole numbers 0..255, `[N, H, W, C]` uint8, clipped."""
    return (dataset.to_pixels() * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def picture(pixels: Tensor) -> Image.Image:
    """Return the picture of pixels `[H, W, C]` uint8, grey or RGB.

    Raises:
        ConfigError: The image has neither one channel nor three.
    """
    if pixels.shape[2] not in (1, 3):
        raise ConfigError(f"images of {pixels.shape[2]} channels cannot be written as PNG: choose another form")
    return Image.fromarray(pixels.squeeze(2).numpy())


def _write_images(part: Path, dataset: DistilledDataset, names: list[str]) -> None:
    for name in names:
        (part / name).mkdir(parents=True)
    rows = zip(to_bytes_scale(dataset), hard_labels(dataset.labels).tolist(), dataset.stages.tolist(), strict=True)
    for number, (pixels, label, stage) in enumerate(rows):
        picture(pixels).save(part / names[label] / f"stage{stage:02d}_{number:05d}.png")


def _stages(paths: list[Path]) -> Tensor | None:
    """Stages that the files' names say; None if they do not."""
    found = [_STAGE.match(path.name) for path in paths]
    if not all(found):
        return None
    return torch.tensor([int(match[1]) for match in found if match])


def _check_replaceable(part: Path) -> None:
    foreign = [path for path in part.rglob("*") if path.is_file() and not _OWN.fullmatch(path.name)]
    if foreign:
        raise ConfigError(f"{part} holds files that no distilled set left, such as {foreign[0]}: choose another folder")
