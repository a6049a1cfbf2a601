"""Image sets kept as folders of image files, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, check_fraction
from pdd_lightning.errors import DataError, check_at_least

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".bmp", ".tif", ".tiff", ".webp")
_PROGRESS_FROM = 5_000
_CHUNK = 64


class ImageFolder(RealDataModule):
    """Images under `root/train/<class>/` and, optionally, `root/test/<class>/`.

    Classes are the folder names in alphabetical order; the files of a class are taken in the order of their
    paths, sub-folders included. Without a `test` folder a test part is held out of the training images.

    Args:
        root: Folder that holds `train`.
        image_size: Pixels per side to scale (shorter side) and centre-crop to; None keeps images as they
            are, all of one square size.
        test_fraction: Share of each class held out for testing when there is no `test` folder.
        grayscale: Read one grey channel; RGB otherwise.
        options: See `RealDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        test_fraction: float = 0.1,
        grayscale: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_fraction("test_fraction", test_fraction)
        check_at_least(1, image_size=image_size)
        self.root = root
        self.image_size = image_size
        self.test_fraction = test_fraction
        self.grayscale = grayscale
        self.name = Path(root).resolve().name

    def load(self) -> tuple[ImageSplit, ImageSplit | None, list[str]]:
        """Find and decode all images.

        Raises:
            DataError: The folders are not laid out as described, or an image cannot be used.
        """
        train_folder, test_folder = Path(self.root, "train"), Path(self.root, "test")
        names = class_folders(train_folder)
        if not names:
            raise DataError(
                f"no images found: looked for {train_folder}/<class>/<image> (and, optionally, "
                f"{test_folder}/<class>/<image>); {_what_is_there(Path(self.root))}"
            )
        unknown = sorted(set(class_folders(test_folder)) - set(names))
        if unknown:
            raise DataError(f"{test_folder} has classes that {train_folder} lacks: {', '.join(unknown)}")
        has_test = any(image_files(test_folder / name) for name in names)
        return self._read(train_folder, names), self._read(test_folder, names) if has_test else None, names

    def _read(self, folder: Path, names: Sequence[str]) -> ImageSplit:
        files = [(file, label) for label, name in enumerate(names) for file in image_files(folder / name)]
        if not files:
            raise DataError(f"{folder} has class folders, but none holds an image ({', '.join(_EXTENSIONS)})")
        paths, labels = zip(*files, strict=True)
        return ImageSplit.in_order(read_images(paths, self.image_size, self.grayscale), torch.tensor(labels))


def read_images(paths: Sequence[Path], image_size: int | None = None, grayscale: bool = False) -> Tensor:
    """Decode image files into memory, with several threads.

    Args:
        paths: At least one image file.
        image_size: Pixels per side to scale (shorter side) and centre-crop to; None keeps sizes.
        grayscale: One grey channel instead of RGB.

    Returns:
        `[N, C, H, W]` uint8, in the order of `paths`.

    Raises:
        DataError: A file cannot be read, or the images differ in size and `image_size` is None.
    """
    first = decode_image(paths[0], image_size, grayscale)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def fill(start: int) -> int:
        chunk = paths[start : start + _CHUNK]
        for row, path in enumerate(chunk, start):
            image = decode_image(path, image_size, grayscale)
            if image.shape != first.shape:
                raise DataError(
                    f"images differ in size: {path} is {_size(image)}, {paths[0]} is {_size(first)}; set image_size to"
                    " scale and crop all of them"
                )
            images[row] = image
        return len(chunk)

    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(total=len(paths), desc="Reading images", disable=len(paths) <= _PROGRESS_FROM) as progress,
    ):
        for done in pool.map(fill, range(0, len(paths), _CHUNK)):
            progress.update(done)
    # A view in the channels-first order would make every later batch strided.
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def decode_image(
    file: Path | BinaryIO, image_size: int | None = None, grayscale: bool = False, name: str | None = None
) -> np.ndarray:
    """Read one image as `[H, W, C]` uint8; see `read_images`.

    Raises:
        DataError: The file, which messages call `name` if given, cannot be read.
    """
    mode = "L" if grayscale else "RGB"
    try:
        with Image.open(file) as opened:
            if image_size is not None:
                # JPEG files can be decoded at a fraction of their size, which is most of the time saved.
                opened.draft(mode, (2 * image_size, 2 * image_size))
            if opened.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(f"its pixel format {opened.mode} has more than 8 bits per channel, or none known here")
            image = ImageOps.exif_transpose(opened).convert(mode)
    except Exception as error:  # the decoders raise many unrelated types on damaged files
        raise DataError(f"cannot read image {name or file}: {error}; replace or remove it") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def class_folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in `folder`, in alphabetical order."""
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def image_files(folder: Path) -> list[Path]:
    """Return the visible image files under `folder`, links followed, in the order of their paths."""
    found = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(_EXTENSIONS) and not name.startswith(".")
    ]
    return sorted(found)


def _what_is_there(root: Path) -> str:
    if not root.is_dir():
        return f"{root} does not exist"
    entries = sorted(entry.name for entry in root.iterdir())
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    return f"{root} holds {shown or 'nothing'}"
