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
from pdd_lightning.data.folder import class_folders, images_in, read_images
from pdd_lightning.data.formats.foreign import Contents, ForeignFormat
from pdd_lightning.data.formats.registry import register
from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import hard_labels
from pdd_lightning.errors import ConfigError, DataError
from pdd_lightning.files import replace_folder

if TYPE_CHECKING:
    from pdd_lightning.data.real import RealDataModule

_PART = "train"
_OWN = re.compile(r"stage\d+_\d+\.png")


@register
class ImageFiles(ForeignFormat):
    """Classes by the names of folders, stages by the names of files."""

    name, title, files = "folder", "image folder", "a folder with train/<class>/<image>"
    is_folder = eight_bits = True
    keeps = ("stages",)

    def sniff(self, path: Path, content: Any) -> bool:
        """Whether it is a folder with a folder `train`."""
        return (path / _PART).is_dir()

    def contents(self, path: Path, real: RealDataModule) -> Contents:
        """Return all images; without stages if some file does not name one."""
        folder = path / _PART
        names, found = [_folder_name(name) for name in real.class_names], class_folders(folder)
        if unknown := sorted(set(found) - set(names)):
            raise DataError(f"{folder} has folders that are no classes of {real.name}: {', '.join(unknown)}")
        files = zip(found, images_in([folder / name for name in found]), strict=True)
        by_label = sorted((names.index(name), own) for name, own in files)
        paths, labels = [path for _, own in by_label for path in own], [label for label, own in by_label for _ in own]
        if not paths:
            raise DataError(f"no images found: looked for {folder}/<class>/<image>")
        images = to_unit(read_images(paths, grayscale=real.image_shape[0] == 1))
        stages = [int(match[1]) for path in paths if (match := re.match(r"stage(\d+)_", path.name))]
        return Contents(images, torch.tensor(labels), torch.tensor(stages) if len(stages) == len(paths) else None)

    def targets(self, path: Path) -> list[Path]:
        """Return the folder of the classes."""
        return [path / _PART]

    def write(self, path: Path, dataset: DistilledDataset) -> None:
        """Write all images; files that no distilled set left are not replaced."""
        names = [_folder_name(name) for name in dataset.class_names]
        if len(set(names)) < len(names) or any(name.startswith(".") or not name for name in names):
            raise ConfigError(f"class names cannot be used as names of folders: {', '.join(dataset.class_names)}")
        part = path / _PART
        for file in part.rglob("*"):
            if file.is_file() and not _OWN.fullmatch(file.name):
                raise ConfigError(
                    f"{part} holds files that no distilled set left, such as {file}: choose another folder"
                )

        def fill(folder: Path) -> None:
            for name in names:
                (folder / name).mkdir()
            labels = hard_labels(dataset.labels).tolist()
            for label, (file_name, png) in zip(labels, png_files(dataset), strict=True):
                (folder / names[label] / file_name).write_bytes(png)

        replace_folder(part, fill)


def png_files(dataset: DistilledDataset) -> Iterator[tuple[str, bytes]]:
    """Yield a name and a PNG file for each image, grey or RGB, clipped to [0, 1].

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
