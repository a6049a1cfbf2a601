"""Real image sets: loading, splitting, fitting the pixel space. A new dataset is one subclass with a `load`."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset

from pdd_lightning.augment.zca import ZCA
from pdd_lightning.data.pixels import PixelSpace, Standardized, Whitened
from pdd_lightning.data.splits import (
    EncodedImages,
    ImageSplit,
    check_fraction,
    check_split,
    stratified_holdout,
    to_unit,
)
from pdd_lightning.errors import ConfigError, check_at_least, check_seed
from pdd_lightning.files import sha256_of_tensors

Batch = tuple[Tensor, Tensor, Tensor]


class RealDataModule(LightningDataModule, ABC):
    """A labeled image set in memory, with a validation part held out of its training images.

    Args:
        val_fraction: Share of each class's training images held out for validation, in (0, 1).
        seed: Seed of the split.
        normalization: "standard" (per-channel mean and deviation) or "zca" (whitening).
        mean: Channel means on the [0, 1] scale; by default the published ones, or those of the train part.
        std: Channel standard deviations, given together with `mean`.
        batch_size: Images per batch of the data loaders.

    Raises:
        ConfigError: A setting is out of its range, or settings contradict each other.
    """

    PUBLISHED_MEAN: ClassVar[tuple[float, ...] | None] = None
    PUBLISHED_STD: ClassVar[tuple[float, ...] | None] = None
    name: str
    """Name of the data set in reports; by default that of the class."""
    test_fraction: float = 0.1
    """Share of each class held out for testing if the source has no test part."""

    def __init__(
        self,
        val_fraction: float = 0.1,
        seed: int = 0,
        normalization: Literal["standard", "zca"] = "standard",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__()
        check_fraction("val_fraction", val_fraction)
        check_at_least(1, batch_size=batch_size)
        check_seed(seed=seed)
        if normalization not in ("standard", "zca"):
            raise ConfigError(f"normalization must be 'standard' or 'zca', got {normalization!r}")
        if (mean is None) != (std is None):
            raise ConfigError("mean and std go together: give both or neither")
        if mean is not None and normalization == "zca":
            raise ConfigError("mean and std have no effect with normalization 'zca': leave them out")
        if mean is not None and std is not None and (len(mean) != len(std) or not min(std, default=0) > 0):
            raise ConfigError(f"std must be positive and as long as mean, got mean {mean} and std {std}")
        self.val_fraction = val_fraction
        self.seed = seed
        self.normalization = normalization
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.name = type(self).__name__
        self._parts: tuple[ImageSplit, ImageSplit, ImageSplit] | None = None
        self._class_names: list[str]
        self._pixels: PixelSpace

    @abstractmethod
    def load(self) -> tuple[ImageSplit, ImageSplit | None, list[str]]:
        """Read the source.

        Returns:
            Training images, test images (None: hold out some of the training images) and the class names by label.

        Raises:
            DataError: The source is missing or unusable.
        """

    def setup(self, stage: str | None = None) -> None:
        """Load, split and fit the pixel space on the train part; later calls do nothing."""
        if self._parts is not None:
            return
        train, test, names = self.load()
        for part in (train,) if test is None else (train, test):
            check_split(part, names, train.images.shape[1:])
        if test is None:
            train, test = stratified_holdout(train, self.test_fraction, self.seed, names, "test")
        train, val = self.split_validation(train, names)
        self._pixels = self._fit_pixels(train.images)
        self._class_names = names
        self._parts = (train, val, test)

    def split_validation(self, train: ImageSplit, class_names: Sequence[str]) -> tuple[ImageSplit, ImageSplit]:
        """Split the source's training images into training and validation part."""
        # Another seed than that of the test part, on which the validation part must not depend.
        return stratified_holdout(train, self.val_fraction, self.seed + 1, class_names, "validation")

    @property
    def train(self) -> ImageSplit:
        """Training images, without the validation part."""
        return self._loaded()[0]

    @property
    def val(self) -> ImageSplit:
        """Validation images, held out of the training images."""
        return self._loaded()[1]

    @property
    def test(self) -> ImageSplit:
        """Test images."""
        return self._loaded()[2]

    @property
    def class_names(self) -> list[str]:
        """Name of each class, by label."""
        self._loaded()
        return self._class_names

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image, `(C, H, W)` with H = W."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def pixels(self) -> PixelSpace:
        """The pixel space, fitted on the train part."""
        self._loaded()
        return self._pixels

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all images, labels, the split, class names and pixel space settings.

        It covers the settings rather than fitted matrices, whose last digits differ between machines.
        """
        parts = zip(("train", "val", "test"), self._loaded(), strict=True)
        tensors = {f"{part}.{name}": tensor for part, split in parts for name, tensor in vars(split).items()}
        settings = {
            "class_names": repr(self.class_names),
            "normalization": self.normalization,
            "statistics": repr(self._given_statistics()),
        }
        return sha256_of_tensors(tensors, settings)

    def __repr__(self) -> str:
        if getattr(self, "_parts", None) is None:
            return f"{type(self).__name__}, not loaded yet"
        train, val, test = (f"{len(part):,}" for part in self._loaded())
        channels, height, width = self.image_shape
        return (
            f"{self.name}: {self.num_classes} classes, {train} training, {val} validation and {test} test images of"
            f" {height} x {width} pixels and {channels} channel{'s' * (channels > 1)}"
        )

    __str__ = __repr__

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return batches of (image in model space, label, index in the source), shuffled."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return batches of (image in model space, label, index in the source), in order."""
        return self._loader(self.val, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return batches of (image in model space, label, index in the source), in order."""
        return self._loader(self.test, shuffle=False)

    def _loader(self, split: ImageSplit, shuffle: bool) -> DataLoader[Batch]:
        # Lightning advises worker processes, which do not help with images in memory.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        # Torch annotates them as datasets, but takes anything that can be indexed.
        parts: tuple[Any, ...] = (EncodedImages(split.images, self.pixels), split.labels, split.indices)
        return DataLoader(StackDataset(*parts), batch_size=self.batch_size, shuffle=shuffle)

    def _loaded(self) -> tuple[ImageSplit, ImageSplit, ImageSplit]:
        if self._parts is None:
            raise RuntimeError(f"{type(self).__name__} is not loaded yet: call prepare_data() and setup() first")
        return self._parts

    def _given_statistics(self) -> tuple[list[float], list[float]] | None:
        """Return the mean and deviation that were set or published; None if they are fitted to the train part."""
        mean, std = self.mean or self.PUBLISHED_MEAN, self.std or self.PUBLISHED_STD
        return (list(mean), list(std)) if self.normalization == "standard" and mean and std else None

    def _fit_pixels(self, images: Tensor) -> PixelSpace:
        if self.normalization == "zca":
            return Whitened(ZCA.fit(to_unit(images)))
        given = self._given_statistics()
        if given is None:
            return Standardized.fit(images)
        if len(given[0]) != images.shape[1]:
            raise ConfigError(f"mean and std need one value per channel ({images.shape[1]}), got {len(given[0])}")
        return Standardized(*given)
