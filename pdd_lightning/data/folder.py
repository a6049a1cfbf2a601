"""Image sets stored as image files, one folder per class."""

from __future__ import annotations

import os
import re
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, check_fraction
from pdd_lightning.errors import ConfigError, DataError, check_at_least
from pdd_lightning.progress import progress_bar

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""Formats that are decoded, whatever a file is called: Pillow starts programs to read some others."""
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
T = TypeVar("T")
_MIN_PROGRESS_IMAGES = 5_000
_CHUNK_SIZE = 64


class ImageFolder(RealDataModule):
    """Images under `root/train/<class>/` and, optionally, `root/test/<class>/`, or under `root/<class>/`.

    Classes are the folder names in alphabetical order; the files of a class, including those of its subfolders, are
    sorted by path. Links to folders are followed, see `find_images`. Without a `test` folder a test part is held out of
    the training images.

    Args:
        root: Folder that holds `train`.
        image_size: Pixels per side to scale (shorter side) and center-crop to; None keeps images as they
            are, all of one square size.
        test_fraction: Share of each class held out for testing when there is no `test` folder.
        grayscale: Read one gray channel; RGB otherwise.
        max_per_class: Training images of each class that are read, evenly spaced in the order of their paths; None
            reads all.
        options: See `RealDataModule`.
    """

    def __init__(
        self,
        root: str,
        image_size: int | None = None,
        test_fraction: float = 0.1,
        grayscale: bool = False,
        max_per_class: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_fraction("test_fraction", test_fraction)
        check_at_least(1, image_size=image_size, max_per_class=max_per_class)
        self.root = root
        self.max_per_class = max_per_class
        self.image_size = image_size
        self.test_fraction = test_fraction
        self.grayscale = grayscale
        self.name = _folder_name(root)

    def load(self) -> tuple[ImageSplit, ImageSplit | None, list[str]]:
        """Find and decode all images.

        Raises:
            DataError: The folders are not laid out as described, or an image cannot be used.
        """
        train, test = Path(self.root, "train"), Path(self.root, "test")
        if not os.path.isdir(train) and not os.path.isdir(test):  # noqa: PTH112  (Path.is_dir raises some errors)
            train = Path(self.root)
        names, test_names = class_folders(train), class_folders(test)
        if not names:
            raise DataError(
                f"no images found: looked for {self.root}/<class>/<image>, or {self.root}/train/<class>/<image> (and,"
                f" optionally, {test}/<class>/<image>); "
                f"{_describe_folder(Path(self.root))}"
            )
        if unknown := sorted(set(test_names) - set(names)):
            raise DataError(f"{test} has classes that {train} lacks: {', '.join(unknown)}")
        files = find_images([*(train / name for name in names), *(test / name for name in test_names)])
        train_files, test_files = files[: len(names)], dict(zip(test_names, files[len(names) :], strict=True))
        _check_training(train, names, train_files)
        train_files = [evenly_spaced(paths, self.max_per_class) for paths in train_files]
        test_split = self._read([test_files.get(name, []) for name in names]) if any(test_files.values()) else None
        return self._read(train_files), test_split, names

    def _read(self, files: Sequence[Sequence[Path]]) -> ImageSplit:
        labels = [label for label, paths in enumerate(files) for _ in paths]
        images = read_images(list(chain.from_iterable(files)), self.image_size, self.grayscale)
        return ImageSplit.in_order(images, torch.tensor(labels))


def evenly_spaced(items: list[T], count: int | None) -> list[T]:
    """Return `count` of the items, evenly spaced, or all of them if there are not more."""
    if count is None or len(items) <= count:
        return items
    return [items[index * len(items) // count] for index in range(count)]


def read_images(paths: Sequence[Path], image_size: int | None = None, grayscale: bool = False) -> Tensor:
    """Decode image files into memory, with several threads.

    Args:
        paths: At least one image file.
        image_size: Pixels per side to scale (shorter side) and center-crop to; None keeps sizes.
        grayscale: Read one gray channel instead of RGB.

    Returns:
        `[N, C, H, W]` uint8, in the order of `paths`.

    Raises:
        DataError: A file cannot be read, or the images differ in size and `image_size` is None.
    """
    with refuse_large_images():
        first = decode_image(paths[0], image_size, grayscale)
    images = np.empty((len(paths), *first.shape), dtype=np.uint8)

    def fill(start: int) -> int:
        chunk = paths[start : start + _CHUNK_SIZE]
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
        refuse_large_images(),
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress_bar(len(paths), "Reading images", "image", len(paths) > _MIN_PROGRESS_IMAGES) as progress,
    ):
        for done in pool.map(fill, range(0, len(paths), _CHUNK_SIZE)):
            progress.update(done)
    # A permuted view would make every later batch strided.
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def decode_image(
    file: Path | BinaryIO, image_size: int | None = None, grayscale: bool = False, name: str | None = None
) -> np.ndarray:
    """Decode one image as `[H, W, C]` uint8; see `read_images`.

    Raises:
        DataError: The file, which messages call `name` if given, cannot be read, or is of none of `FORMATS`.
    """
    mode = "L" if grayscale else "RGB"
    try:
        if isinstance(file, Path) and not file.is_file():  # opening a named pipe would block
            raise ValueError("it is no regular file")
        with Image.open(file, formats=FORMATS) as opened:
            if image_size is not None:
                # JPEG files can be decoded at a fraction of their size, which saves most of the time.
                opened.draft(mode, (2 * image_size, 2 * image_size))
            if opened.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(f"its pixel format {opened.mode} has more than 8 bits per channel, or is unknown")
            image = ImageOps.exif_transpose(opened).convert(mode)
    except Exception as error:  # the decoders raise many unrelated types on damaged files
        unknown = f"it is damaged, or none of {', '.join(FORMATS)}"
        reason = unknown if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise DataError(f"cannot read image {name or file}: {reason}; replace or remove it") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


@contextmanager
def refuse_large_images() -> Iterator[None]:
    """Turn Pillow's warning of images with more pixels than its limit into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def class_folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in `folder`, in alphabetical order.

    Raises:
        DataError: The folder cannot be listed, or a name cannot be that of a class.
    """
    if not os.path.isdir(folder):  # noqa: PTH112  (Path's raises an error without permission)
        return []
    names = sorted(entry.name for entry in _list(folder) if _is_folder(entry) and not entry.name.startswith("."))
    for name in names:
        if _UNPRINTABLE.search(name):
            raise DataError(f"the class folder {name!r} in {folder} has a name that is no plain UTF-8 text: rename it")
    return names


def find_images(folders: Sequence[Path]) -> list[list[Path]]:
    """Return the visible image files under each folder, sorted by path.

    Links to folders are followed, but every folder is visited only once, by its own path rather than by a link if it
    lies under one of the folders. So cyclic links end, and no folder is part of two classes or of training and test.

    Args:
        folders: Class folders.

    Raises:
        DataError: A folder cannot be listed, or is the same as another one.
    """
    found: list[list[Path]] = [[] for _ in folders]
    visited = {_inode(parent) for parent in {parent for folder in folders for parent in folder.absolute().parents}}
    # Links are taken from the right end, after all folders that are not links.
    queue = deque(sorted(enumerate(folders), key=lambda item: os.path.islink(item[1])))  # noqa: PTH114
    while queue:
        number, folder = queue.popleft()
        if (inode := _inode(folder)) in visited:
            if folder == folders[number]:
                raise DataError(f"the class folder {folder} is a link to where other images of the set lie: remove it")
            continue
        visited.add(inode)
        for entry in _list(folder):
            if _is_folder(entry):
                (queue.append if entry.is_symlink() else queue.appendleft)((number, Path(entry.path)))
            elif entry.name.lower().endswith(_EXTENSIONS) and not entry.name.startswith("."):
                found[number].append(Path(entry.path))
    return [sorted(files) for files in found]


def _check_training(folder: Path, names: Sequence[str], files: Sequence[Sequence[Path]]) -> None:
    """Refuse classes that nothing can be learned from, before any image is read."""
    extensions = ", ".join(_EXTENSIONS)
    if not any(files):
        raise DataError(f"{folder} has class folders, but none holds an image ({extensions})")
    for name, paths in zip(names, files, strict=True):
        if not paths:
            raise DataError(f"class {name!r} has 0 images ({extensions}) in {folder}: add some, or remove the folder")
    if len(names) == 1:
        raise DataError(f"{folder} holds a single class, {names[0]!r}: training needs at least two")


@contextmanager
def _report_unreadable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error


def _list(folder: Path) -> list[os.DirEntry[str]]:
    with _report_unreadable(folder), os.scandir(folder) as entries:
        return list(entries)


def _inode(folder: Path) -> tuple[int, int]:
    with _report_unreadable(folder):
        status = folder.stat()
        return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


def _folder_name(root: str) -> str:
    """Return the name of the folder, which reports show as that of the data set."""
    try:
        name = Path(root).resolve().name
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"root {root!r} cannot be a folder: {error}") from error
    if _UNPRINTABLE.search(name):
        raise ConfigError(f"root names the folder {name!r}, which is no plain UTF-8 text: rename it")
    return name


def _describe_folder(root: Path) -> str:
    if not os.path.isdir(root):  # noqa: PTH112
        return f"{root} {'is no folder' if os.path.lexists(root) else 'does not exist'}"
    names = sorted(entry.name for entry in _list(root))
    return f"{root} holds {', '.join(names[:5]) or 'nothing'}{', ...' if len(names) > 5 else ''}"
