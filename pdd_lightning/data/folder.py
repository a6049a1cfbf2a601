"""Image sets kept as folders of image files, one folder per class."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, check_fraction
from pdd_lightning.errors import ConfigError, DataError, check_at_least

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What images may be inside, whatever a file is called: reading some other formats starts programs."""
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pbm", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_PROGRESS_FROM = 5_000
_CHUNK = 64


class ImageFolder(RealDataModule):
    """Images under `root/train/<class>/` and, optionally, `root/test/<class>/`.

    Classes are the folder names in alphabetical order; the files of a class are taken in the order of their
    paths, sub-folders included. Links to folders are followed, each folder once, see `images_in`. Without a `test`
    folder a test part is held out of the training images.

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
        self.name = _name_of(root)

    def load(self) -> tuple[ImageSplit, ImageSplit | None, list[str]]:
        """Find and decode all images.

        Raises:
            DataError: The folders are not laid out as described, or an image cannot be used.
        """
        train, test = Path(self.root, "train"), Path(self.root, "test")
        names, tested = class_folders(train), class_folders(test)
        if not names:
            raise DataError(
                f"no images found: looked for {train}/<class>/<image> (and, optionally, {test}/<class>/<image>); "
                f"{_what_is_there(Path(self.root))}"
            )
        if unknown := sorted(set(tested) - set(names)):
            raise DataError(f"{test} has classes that {train} lacks: {', '.join(unknown)}")
        files = images_in([*(train / name for name in names), *(test / name for name in tested)])
        training, testing = files[: len(names)], dict(zip(tested, files[len(names) :], strict=True))
        _check_training(train, names, training)
        held_apart = [testing.get(name, []) for name in names]
        return self._read(training), self._read(held_apart) if any(held_apart) else None, names

    def _read(self, files: Sequence[Sequence[Path]]) -> ImageSplit:
        labels = [label for label, own in enumerate(files) for _ in own]
        paths = [path for own in files for path in own]
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
    with bombs_refused():
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
        bombs_refused(),
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
        DataError: The file, which messages call `name` if given, cannot be read, or is of none of `FORMATS`.
    """
    mode = "L" if grayscale else "RGB"
    try:
        if isinstance(file, Path) and not file.is_file():  # a named pipe would be waited for
            raise ValueError("it is no regular file")
        with Image.open(file, formats=FORMATS) as opened:
            if image_size is not None:
                # JPEG files can be decoded at a fraction of their size, which is most of the time saved.
                opened.draft(mode, (2 * image_size, 2 * image_size))
            if opened.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
                raise ValueError(f"its pixel format {opened.mode} has more than 8 bits per channel, or none known here")
            image = ImageOps.exif_transpose(opened).convert(mode)
    except Exception as error:  # the decoders raise many unrelated types on damaged files
        known = f"it is damaged, or none of {', '.join(FORMATS)}"
        reason = known if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
        raise DataError(f"cannot read image {name or file}: {reason}; replace or remove it") from error
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, -1)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


@contextmanager
def bombs_refused() -> Iterator[None]:
    """Have images of more pixels than Pillow's limit be an error, of which it would only warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def class_folders(folder: Path) -> list[str]:
    """Return the names of the visible folders in `folder`, in alphabetical order.

    Raises:
        DataError: The folder cannot be listed, or a name cannot be that of a class.
    """
    if not os.path.isdir(folder):  # noqa: PTH112  (Path's raises where one may not look)
        return []
    names = sorted(entry.name for entry in _entries(folder) if _is_folder(entry) and not entry.name.startswith("."))
    for name in names:
        if not _is_text(name):
            raise DataError(f"the class folder {name!r} in {folder} has a name that is no plain UTF-8 text: rename it")
    return names


def images_in(folders: Sequence[Path]) -> list[list[Path]]:
    """Return the visible image files under each folder, in the order of their paths.

    Links to folders are followed, but every folder is visited once, and where it lies rather than by a link. So links
    lead nowhere in circles, and bring no folder into two classes, or into training and test part.

    Args:
        folders: Folders of classes.

    Raises:
        DataError: One cannot be listed, or is the same as another one.
    """
    found: list[list[Path]] = [[] for _ in folders]
    visited = {_identity(parent) for parent in {parent for folder in folders for parent in folder.absolute().parents}}
    here, linked = deque[tuple[int, Path]](), deque[tuple[int, Path]]()
    for number, folder in enumerate(folders):
        (linked if os.path.islink(folder) else here).append((number, folder))  # noqa: PTH114
    while here or linked:
        number, folder = (here or linked).popleft()
        if (identity := _identity(folder)) in visited:
            if folder == folders[number]:
                raise DataError(f"the class folder {folder} is a link to where other images of the set lie: remove it")
            continue
        visited.add(identity)
        for entry in _entries(folder):
            if _is_folder(entry):
                (linked if entry.is_symlink() else here).append((number, Path(entry.path)))
            elif entry.name.lower().endswith(_EXTENSIONS) and not entry.name.startswith("."):
                found[number].append(Path(entry.path))
    return [sorted(files) for files in found]


def _check_training(folder: Path, names: Sequence[str], files: Sequence[Sequence[Path]]) -> None:
    """Refuse classes that nothing can be learned from, before any image is read."""
    extensions = ", ".join(_EXTENSIONS)
    if not any(files):
        raise DataError(f"{folder} has class folders, but none holds an image ({extensions})")
    for name, own in zip(names, files, strict=True):
        if not own:
            raise DataError(f"class {name!r} has 0 images ({extensions}) in {folder}: add some, or remove the folder")
    if len(names) == 1:
        raise DataError(f"{folder} holds one class alone, {names[0]!r}: two are needed to tell apart")


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    try:
        facts = folder.stat()
    except OSError as error:
        raise DataError(f"cannot list the folder {folder}: {error.strerror}") from error
    return facts.st_dev, facts.st_ino


def _is_text(name: str) -> bool:
    """Whether a name of a file can be written as a line of text."""
    try:
        return not any(byte < 32 or byte == 127 for byte in name.encode())
    except UnicodeEncodeError:
        return False


def _name_of(root: str) -> str:
    """The name of a folder, which reports call the data set."""
    try:
        name = Path(root).resolve().name
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"root {root!r} cannot be a folder: {error}") from error
    if not _is_text(name):
        raise ConfigError(f"root names the folder {name!r}, which is no plain UTF-8 text: rename it")
    return name


def _what_is_there(root: Path) -> str:
    if not os.path.isdir(root):  # noqa: PTH112
        return f"{root} {'is no folder' if os.path.lexists(root) else 'does not exist'}"
    entries = sorted(entry.name for entry in _entries(root))
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    return f"{root} holds {shown or 'nothing'}"
