"""Real image sets, pixel spaces, and distilled sets.

Names are imported when they are first used: whoever only reads a distilled set does not wait for Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_lightning.data.class_batches import ClassBatches, ClassSampler, by_class
    from pdd_lightning.data.digits import Digits
    from pdd_lightning.data.discard import DiscardSettings
    from pdd_lightning.data.distilled import DistilledDataset, save_distilled
    from pdd_lightning.data.folder import ImageFolder
    from pdd_lightning.data.forgetting import ForgettingScores, compare_scores
    from pdd_lightning.data.formats import ImportOptions, open_distilled
    from pdd_lightning.data.pixels import PixelSpace, Standardized, Whitened
    from pdd_lightning.data.progressive import ProgressiveDataModule
    from pdd_lightning.data.real import RealDataModule
    from pdd_lightning.data.splits import EncodedImages, ImageSplit
    from pdd_lightning.data.subset import ClassSubset, ClassTask
    from pdd_lightning.data.synthetic import SyntheticSet
    from pdd_lightning.data.tiny_imagenet import TinyImageNet
    from pdd_lightning.data.torchvision_sets import CIFAR10, CIFAR100, MNIST, SVHN, FashionMNIST

_HOME = {
    "CIFAR10": "torchvision_sets",
    "CIFAR100": "torchvision_sets",
    "ClassBatches": "class_batches",
    "ClassSampler": "class_batches",
    "ClassSubset": "subset",
    "ClassTask": "subset",
    "Digits": "digits",
    "DiscardSettings": "discard",
    "DistilledDataset": "distilled",
    "EncodedImages": "splits",
    "FashionMNIST": "torchvision_sets",
    "ForgettingScores": "forgetting",
    "ImageFolder": "folder",
    "ImageSplit": "splits",
    "ImportOptions": "formats",
    "MNIST": "torchvision_sets",
    "PixelSpace": "pixels",
    "ProgressiveDataModule": "progressive",
    "RealDataModule": "real",
    "SVHN": "torchvision_sets",
    "Standardized": "pixels",
    "SyntheticSet": "synthetic",
    "TinyImageNet": "tiny_imagenet",
    "Whitened": "pixels",
    "by_class": "class_batches",
    "compare_scores": "forgetting",
    "open_distilled": "formats",
    "save_distilled": "distilled",
}

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "SVHN",
    "ClassBatches",
    "ClassSampler",
    "ClassSubset",
    "ClassTask",
    "Digits",
    "DiscardSettings",
    "DistilledDataset",
    "EncodedImages",
    "FashionMNIST",
    "ForgettingScores",
    "ImageFolder",
    "ImageSplit",
    "ImportOptions",
    "PixelSpace",
    "ProgressiveDataModule",
    "RealDataModule",
    "Standardized",
    "SyntheticSet",
    "TinyImageNet",
    "Whitened",
    "by_class",
    "compare_scores",
    "open_distilled",
    "save_distilled",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
