"""Standard image sets, read from their official files: scikit-learn's digits, torchvision's sets, Tiny ImageNet."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch

from pdd_lightning.data.folder import read_images
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, check_fraction
from pdd_lightning.errors import DataError
from pdd_lightning.stored import MAX_TEXT_BYTES, damaged_error, one_line, read_bytes

_TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_TINY_IMAGENET_FILES = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")


class Digits(RealDataModule):
    """Scikit-learn's handwritten digits: 1,797 images, 1x8x8, 10 classes; they need no download.

    The 17 gray levels 0..16 are scaled to 0..255. A test part is held out at random.

    Args:
        test_fraction: Share of each class held out for testing.
        options: See `RealDataModule`.
    """

    def __init__(self, test_fraction: float = 0.2, **options: Any) -> None:
        super().__init__(**options)
        check_fraction("test_fraction", test_fraction)
        self.test_fraction = test_fraction

    def load(self) -> tuple[ImageSplit, None, list[str]]:
        """Read the digits from the installed scikit-learn."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        levels = torch.from_numpy(digits.images).unsqueeze(1)
        images = (levels * (255 / 16)).round().to(torch.uint8)
        labels = torch.from_numpy(digits.target).long()
        return ImageSplit.in_order(images, labels), None, [str(name) for name in digits.target_names]


class TorchvisionData(RealDataModule):
    """An image set that a dataset class of torchvision reads.

    Args:
        root: Folder of the downloaded files.
        download: Whether `prepare_data` downloads the set if it is missing.
        options: See `RealDataModule`.
    """

    READER: ClassVar[str]
    """Name of the class in `torchvision.datasets`."""

    def __init__(self, root: str = "data", download: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing, if `download` allows it.

        Raises:
            DataError: The download failed.
        """
        try:
            for train in (True, False) if self.download else ():
                self._open(train, download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"could not download {self.name} to {self.root}: {error}; check the connection and free disk space, or"
                " put the official files there yourself"
            ) from error

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Read the official training and test images.

        Raises:
            DataError: The files are missing or damaged.
        """
        try:
            train, names = self._open(train=True)
            test, _ = self._open(train=False)
        except Exception as error:  # torchvision's readers raise many unrelated types on damaged files
            remedy = "call prepare_data() first" if self.download else "set download to true"
            raise DataError(
                f"{self.name} was not found under {self.root!r}, or its files are damaged ({one_line(error)}): {remedy}"
            ) from error
        return train, test, names

    def _open(self, train: bool, download: bool = False) -> tuple[ImageSplit, list[str]]:
        """Read one part by torchvision; return it with the class names."""
        from torchvision import datasets

        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warns of the age of CIFAR's official files.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            part = getattr(datasets, self.READER)(self.root, download=download, **self._part_option(train))
        images = torch.as_tensor(part.data)
        if images.dim() == 3:
            images = images.unsqueeze(1)
        elif images.shape[3] == 3:
            images = images.permute(0, 3, 1, 2)
        # SVHN's reader calls the labels so, and has no class names: its classes are the digits.
        labels = part.labels if hasattr(part, "labels") else part.targets
        names = [str(name) for name in getattr(part, "classes", range(10))]
        return ImageSplit.in_order(images, torch.as_tensor(labels, dtype=torch.int64)), names

    def _part_option(self, train: bool) -> dict[str, object]:
        return {"train": train}


class CIFAR10(TorchvisionData):
    """CIFAR-10: 50,000 training and 10,000 test images, 3x32x32, 10 classes."""

    READER = "CIFAR10"
    PUBLISHED_MEAN = (0.4914, 0.4822, 0.4465)
    PUBLISHED_STD = (0.2023, 0.1994, 0.2010)


class CIFAR100(TorchvisionData):
    """CIFAR-100: 50,000 training and 10,000 test images, 3x32x32, 100 classes."""

    READER = "CIFAR100"
    PUBLISHED_MEAN = (0.5071, 0.4866, 0.4409)
    PUBLISHED_STD = (0.2673, 0.2564, 0.2762)


class MNIST(TorchvisionData):
    """MNIST: 60,000 training and 10,000 test images of digits, 1x28x28, 10 classes."""

    READER = "MNIST"
    PUBLISHED_MEAN = (0.1307,)
    PUBLISHED_STD = (0.3081,)


class FashionMNIST(TorchvisionData):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothes, 1x28x28, 10 classes."""

    READER = "FashionMNIST"
    PUBLISHED_MEAN = (0.2861,)
    PUBLISHED_STD = (0.3530,)


class SVHN(TorchvisionData):
    """Street View House Numbers: 73,257 training and 26,032 test images of digits, 3x32x32, 10 classes."""

    READER = "SVHN"
    PUBLISHED_MEAN = (0.4377, 0.4438, 0.4728)
    PUBLISHED_STD = (0.1980, 0.2010, 0.1970)

    def _part_option(self, train: bool) -> dict[str, object]:
        return {"split": "train" if train else "test"}


class TinyImageNet(RealDataModule):
    """Tiny ImageNet: 100,000 training images, 3x64x64, 200 classes, read from its official folder.

    Labels follow the alphabetical order of the WordNet identifiers. The labels of the official test images
    are not public, so its validation part (10,000 images) is the test part here.

    Args:
        root: The unpacked folder `tiny-imagenet-200`, or the folder that holds it.
        options: See `RealDataModule`.
    """

    PUBLISHED_MEAN = (0.4802, 0.4481, 0.3975)
    PUBLISHED_STD = (0.2302, 0.2265, 0.2262)

    def __init__(self, root: str = "data", **options: Any) -> None:
        super().__init__(**options)
        self.root = root

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Read training and validation images and the names of the classes.

        Raises:
            DataError: The folder is missing or incomplete.
        """
        root = Path(self.root)
        folder = root if (root / "wnids.txt").exists() else root / "tiny-imagenet-200"
        annotations = folder / "val" / "val_annotations.txt"
        if missing := [name for name in _TINY_IMAGENET_FILES if not (folder / name).exists()]:
            raise _incomplete(folder, f"lacks {', '.join(missing)}")
        ids = sorted(_read_text(folder / "wnids.txt").split())
        if invalid := [wnid for wnid in ids if not re.fullmatch(r"n\d+", wnid)]:
            raise DataError(f"{folder / 'wnids.txt'} has a line that is no WordNet identifier: {one_line(invalid[0])}")
        folders = [folder / "train" / wnid / "images" for wnid in ids]
        train = [(file, label) for label, images in enumerate(folders) for file in sorted(images.glob("*.JPEG"))]
        test = []
        for line in _read_text(annotations).splitlines():
            name, wnid = [*line.split("\t"), ""][:2]
            if wnid not in ids or not re.fullmatch(r"\w+\.JPEG", name):
                raise DataError(f"{annotations} has a line without a known class and image: {one_line(line)}")
            test.append((folder / "val" / "images" / name, ids.index(wnid)))
        if not train or not test:
            raise _incomplete(folder, "has no images")
        rows = (line.split("\t", 1) for line in _read_text(folder / "words.txt").splitlines() if "\t" in line)
        words = {wnid: name.strip() for wnid, name in rows}
        return _read_split(train), _read_split(test), [words.get(wnid, wnid) for wnid in ids]


def _incomplete(folder: Path, reason: str) -> DataError:
    return DataError(f"Tiny ImageNet is not complete: {folder} {reason}; download and unpack {_TINY_IMAGENET_URL}")


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_TEXT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise damaged_error(path, error) from error


def _read_split(files: list[tuple[Path, int]]) -> ImageSplit:
    paths, labels = zip(*files, strict=True)
    return ImageSplit.in_order(read_images(paths), torch.tensor(labels))
