"""Tiny ImageNet, read from its official folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from pdd_lightning.data.folder import read_images
from pdd_lightning.data.real import ImageSplit, RealDataModule
from pdd_lightning.errors import DataError

_FOLDER = "tiny-imagenet-200"
_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


class TinyImageNet(RealDataModule):
    """Tiny ImageNet: 100,000 training images, 3x64x64, 200 classes.

    Labels follow the alphabetical order of the WordNet identifiers. The labels of the official test images
    are not public, so its validation part (10,000 images) is the test part here.

    Args:
        root: The unpacked folder `tiny-imagenet-200`, or the folder that holds it.
        val_fraction: Share of each class's training images held out for validation.
        seed: Seed of the split.
        normalization: "standard" or "zca".
        mean: Channel means on the [0, 1] scale; published ones by default.
        std: Channel standard deviations, given together with `mean`.
        batch_size: Images per batch of the data loaders.
    """

    PUBLISHED_MEAN = (0.4802, 0.4481, 0.3975)
    PUBLISHED_STD = (0.2302, 0.2265, 0.2262)

    def __init__(
        self,
        root: str = "data",
        val_fraction: float = 0.1,
        seed: int = 0,
        normalization: Literal["standard", "zca"] = "standard",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(val_fraction, seed, normalization, mean, std, batch_size)
        self.root = root

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Read training and validation images and the names of the classes.

        Raises:
            DataError: The folder is missing or incomplete.
        """
        folder = self._folder()
        wnids = sorted((folder / "wnids.txt").read_text().split())
        return _read_train(folder, wnids), _read_val(folder, wnids), _class_names(folder, wnids)

    def _folder(self) -> Path:
        root = Path(self.root)
        folder = root if (root / "wnids.txt").exists() else root / _FOLDER
        needed = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")
        missing = [name for name in needed if not (folder / name).exists()]
        if missing:
            raise DataError(
                f"Tiny ImageNet is not complete: {folder} lacks {', '.join(missing)}; download {_URL} and "
                f"unpack it in {root}"
            )
        return folder


def _read_train(folder: Path, wnids: list[str]) -> ImageSplit:
    paths: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        files = sorted((folder / "train" / wnid / "images").glob("*.JPEG"))
        paths += files
        labels += [label] * len(files)
    return _read(paths, labels, folder / "train")


def _read_val(folder: Path, wnids: list[str]) -> ImageSplit:
    """Read the official validation images in the order of their annotations."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val" / "val_annotations.txt"
    paths: list[Path] = []
    labels: list[int] = []
    for line in annotations.read_text().splitlines():
        name, wnid = [*line.split("\t"), ""][:2]
        if wnid not in label_of:
            raise DataError(f"{annotations} has a line without a known class: {line!r}")
        paths.append(folder / "val" / "images" / name)
        labels.append(label_of[wnid])
    return _read(paths, labels, annotations)


def _read(paths: list[Path], labels: list[int], source: Path) -> ImageSplit:
    if not paths:
        raise DataError(f"Tiny ImageNet is not complete: no images found by {source}; download {_URL} again")
    return ImageSplit.in_order(read_images(paths), torch.tensor(labels))


def _class_names(folder: Path, wnids: list[str]) -> list[str]:
    rows = (line.split("\t", 1) for line in (folder / "words.txt").read_text().splitlines() if "\t" in line)
    words = {wnid: name.strip() for wnid, name in rows}
    return [words.get(wnid, wnid) for wnid in wnids]
