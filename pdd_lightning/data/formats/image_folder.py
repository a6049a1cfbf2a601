"""A distilled set as image files: `train/<class>/stage<S>_<number>.png`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from pdd_lightning.data.distilled import DistilledDataset
from pdd_lightning.data.folder import class_folders, find_images, read_images
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat
from pdd_lightning.data.formats.registry import register
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.files import replace_folder

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_PART = "train"
_FILE_NAME = re.compile(r"stage(\d+)_\d+\.png")


@register
class ImageFiles(ForeignFormat):
    """A folder per class, with the stage in each file's name."""

    name, title, files = "folder", "image folder", "a folder with train/<class>/<image>"
    is_folder = eight_bits = True
    keeps = ("stages",)

    def sniff(self, path: Path, content: Any) -> bool:
        """Return whether it is a folder with a folder `train`."""
        return (path / _PART).is_dir()

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return all images; without stages if some file name lacks one."""
        folder = path / _PART
        names, found = [_folder_name(name) for name in real.class_names], class_folders(folder)
        if unknown := sorted(set(found) - set(names)):
            raise DataError(f"{folder} has folders that are no classes of {real.name}: {', '.join(unknown)}")
        files = zip(map(names.index, found), find_images([folder / name for name in found]), strict=True)
        labeled = [(label, path) for label, paths in sorted(files) for path in paths]
        if not labeled:
            raise DataError(f"no images found: looked for {folder}/<class>/<image>")
        labels, paths = zip(*labeled, strict=True)
        images = to_unit(read_images(paths, grayscale=real.image_shape[0] == 1))
        stages = [int(match[1]) for path in paths if (match := re.match(r"stage(\d+)_", path.name))]
        return Contents(images, torch.tensor(labels), torch.tensor(stages) if len(stages) == len(paths) else None)

    def targets(self, path: Path) -> list[Path]:
        """Return the folder that holds the class folders."""
        return [path / _PART]

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write all images; refuse to replace files that are not of a distilled set."""
        names = [_folder_name(name) for name in dataset.class_names]
        if len(set(names)) < len(names) or any(name.startswith(".") or not name for name in names):
            raise ConfigError(f"class names cannot be used as names of folders: {', '.join(dataset.class_names)}")
        part = path / _PART
        for file in part.rglob("*"):
            if file.is_file() and not _FILE_NAME.fullmatch(file.name):
                raise ConfigError(f"{part} holds files of no distilled set, such as {file}: choose another folder")

        def fill(folder: Path) -> None:
            for name in names:
                (folder / name).mkdir()
            labels = hard_labels(dataset.labels).tolist()
            for label, (file_name, png) in zip(labels, png_files(dataset), strict=True):
                (folder / names[label] / file_name).write_bytes(png)

        replace_folder(part, fill)


def png_files(dataset: DistilledDataset) -> Iterator[tuple[str, bytes]]:
    """Yield a name and a PNG file for each image, gray or RGB, clipped to [0, 1].

    Raises:
        ConfigError: The images have neither one channel nor three.
    """
    images = (dataset.to_pixels() * 255).round().to(torch.uint8)
    if images.shape[1] not in (1, 3):
        raise ConfigError(f"images of {images.shape[1]} channels cannot be written as PNG: choose another format")
    for number, (image, stage) in enumerate(zip(images, dataset.stages.tolist(), strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "PNG")
        yield f"stage{stage:02d}_{number:05d}.png", buffer.getvalue()


def _folder_name(class_name: str) -> str:
    return re.sub(r"[/\\]", "_", class_name)
