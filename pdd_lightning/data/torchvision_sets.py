"""Image sets that torchvision downloads and reads."""

from __future__ import annotations

import pickle
import warnings
from typing import ClassVar, Literal

import torch

from pdd_lightning.data.real import ImageSplit, RealDataModule
from pdd_lightning.errors import DataError


class TorchvisionData(RealDataModule):
    """A set read by a dataset of torchvision.

    Args:
        root: Folder of the downloaded files.
        download: Whether `prepare_data` downloads the set when it is missing.
        val_fraction: Share of each class's training images held out for validation.
        seed: Seed of the split.
        normalization: "standard" or "zca".
        mean: Channel means on the [0, 1] scale; published ones by default.
        std: Channel standard deviations, given together with `mean`.
        batch_size: Images per batch of the data loaders.
    """

    READER: ClassVar[str]
    """Name of the class in `torchvision.datasets`."""

    CHANNELS_LAST: ClassVar[bool] = True
    """Whether colour images are stored as `[N, H, W, C]`."""

    LABELS: ClassVar[str] = "targets"
    """Where the class in torchvision keeps the labels."""

    def __init__(
        self,
        root: str = "data",
        download: bool = True,
        val_fraction: float = 0.1,
        seed: int = 0,
        normalization: Literal["standard", "zca"] = "standard",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(val_fraction, seed, normalization, mean, std, batch_size)
        self.root = root
        self.download = download

    def prepare_data(self) -> None:
        """Download what is missing, if `download` allows it.

        Raises:
            DataError: The download failed.
        """
        if not self.download:
            return
        for train in (True, False):
            try:
                self._open(train, download=True)
            except (OSError, RuntimeError) as error:
                raise DataError(
                    f"could not download {self.name} to {self.root}: {error}; check the connection and free "
                    "disk space, or put the official files there yourself"
                ) from error

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Read the official training and test images.

        Raises:
            DataError: The files are missing or damaged.
        """
        try:
            train, names = self._open(train=True)
            test, _ = self._open(train=False)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            remedy = "call prepare_data() first" if self.download else "set download to true"
            raise DataError(
                f"{self.name} was not found under {self.root!r}, or its files are damaged ({error}): {remedy}"
            ) from error
        return train, test, names

    def _open(self, train: bool, download: bool = False) -> tuple[ImageSplit, list[str]]:
        """Let torchvision read one part; return it with the class names."""
        from torchvision import datasets

        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warns of the age of CIFAR's official files.
            warnings.filterwarnings("ignore", message=r"dtype\(\): align")
            part = getattr(datasets, self.READER)(self.root, download=download, **self._part_option(train))
        data = torch.as_tensor(part.data)
        if data.dim() == 3:
            data = data.unsqueeze(1)
        elif self.CHANNELS_LAST:
            data = data.permute(0, 3, 1, 2)
        labels = torch.as_tensor(getattr(part, self.LABELS), dtype=torch.int64)
        # SVHN is the one that comes without names: its classes are the digits.
        names = [str(name) for name in getattr(part, "classes", range(10))]
        return ImageSplit.in_order(data, labels), names

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
    CHANNELS_LAST = False
    LABELS = "labels"
    PUBLISHED_MEAN = (0.4377, 0.4438, 0.4728)
    PUBLISHED_STD = (0.1980, 0.2010, 0.1970)

    def _part_option(self, train: bool) -> dict[str, object]:
        return {"split": "train" if train else "test"}
