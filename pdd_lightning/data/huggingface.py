"""Image sets that the Hugging Face library `datasets` reads: from the Hub, Parquet files, or a local folder."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdd_lightning.data.folder import decode_image, refuse_large_images
from pdd_lightning.data.real import RealDataModule
from pdd_lightning.data.splits import ImageSplit, check_fraction
from pdd_lightning.errors import ConfigError, DataError, check_at_least
from pdd_lightning.stored import one_line


class HuggingFaceImages(RealDataModule):
    """An image classification set of the library `datasets`, held in memory.

    Without a test split a test part is held out of the training images. No code of a data set is run.

    Args:
        source: Name of a data set on the Hub, a Parquet file, or a local folder that `datasets.load_dataset` or
            `load_from_disk` reads.
        train_split: Name of the split to train on.
        test_split: Name of the split to test on; a set without it has a test part held out.
        image_column: Column of the images.
        label_column: Column of the classes: class labels, whole numbers or text.
        image_size: Pixels per side to scale (shorter side) and center-crop to; None keeps images as they are, all of
            one square size.
        grayscale: Read one gray channel; RGB otherwise.
        revision: Branch, tag or commit of a data set on the Hub; None takes the newest.
        test_fraction: Share of each class held out for testing where there is no test split.
        options: See `RealDataModule`.

    Raises:
        ConfigError: A setting is out of range, or `datasets` is not installed.
    """

    def __init__(
        self,
        source: str,
        train_split: str = "train",
        test_split: str = "test",
        image_column: str = "image",
        label_column: str = "label",
        image_size: int | None = None,
        grayscale: bool = False,
        revision: str | None = None,
        test_fraction: float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_fraction("test_fraction", test_fraction)
        check_at_least(1, image_size=image_size)
        self.source = source
        self.train_split = train_split
        self.test_split = test_split
        self.image_column = image_column
        self.label_column = label_column
        self.image_size = image_size
        self.grayscale = grayscale
        self.revision = revision
        self.test_fraction = test_fraction
        self.name = Path(source).stem

    def prepare_data(self) -> None:
        """Download the set, if it is one of the Hub that is not in the cache.

        Raises:
            DataError: It cannot be had.
        """
        self._open()

    def load(self) -> tuple[ImageSplit, ImageSplit | None, list[str]]:
        """Read and decode all images.

        Raises:
            DataError: The set cannot be had, lacks a split or a column, or an image or a class cannot be used.
        """
        splits = self._open()
        if self.train_split not in splits:
            raise DataError(f"{self.source} has no split {self.train_split}; it has {', '.join(splits)}")
        names = self._class_names_of(splits[self.train_split])
        train = self._read(splits[self.train_split], names)
        return train, self._read(splits[self.test_split], names) if self.test_split in splits else None, names

    def _open(self) -> Any:
        """Return the splits by name."""
        datasets, path = _datasets(), Path(self.source)
        try:
            if path.is_file():
                return datasets.load_dataset("parquet", data_files={self.train_split: str(path)})
            if path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
                opened = datasets.load_from_disk(self.source)
                return opened if isinstance(opened, datasets.DatasetDict) else {self.train_split: opened}
            return datasets.load_dataset(self.source, revision=self.revision)
        except Exception as error:  # of many unrelated types
            raise DataError(f"cannot read the data set {self.source}: {one_line(error)}") from error

    def _class_names_of(self, split: Any) -> list[str]:
        if missing := [name for name in (self.image_column, self.label_column) if name not in split.column_names]:
            raise DataError(
                f"{self.source} has no column {missing[0]}: name image_column and label_column, of"
                f" {', '.join(split.column_names)}"
            )
        names = getattr(split.features[self.label_column], "names", None)
        return list(names) if names else sorted({str(label) for label in split[self.label_column]})

    def _read(self, split: Any, names: list[str]) -> ImageSplit:
        encoded = split.cast_column(self.image_column, _datasets().Image(decode=False))
        images = encoded[self.image_column]
        labels, given = split[self.label_column], hasattr(split.features[self.label_column], "names")
        indices = {name: index for index, name in enumerate(names)}
        classes = [int(label) if given else indices.get(str(label), -1) for label in labels]
        if unknown := [label for label, index in zip(labels, classes, strict=True) if not 0 <= index < len(names)]:
            raise DataError(f"{self.source}: {one_line(unknown[0])} is not among the classes of {self.train_split}")
        return ImageSplit.in_order(self._decoded(images), torch.tensor(classes))

    def _decoded(self, images: Sequence[dict[str, Any]]) -> Tensor:
        """Return images `[N, C, H, W]` uint8."""

        def decode(number: int) -> np.ndarray:
            image = images[number]
            file = Path(image["path"]) if image["bytes"] is None else io.BytesIO(image["bytes"])
            return decode_image(file, self.image_size, self.grayscale, f"{number} of {self.source}")

        with refuse_large_images(), ThreadPoolExecutor() as pool:
            decoded = list(pool.map(decode, range(len(images))))
        if len({image.shape for image in decoded}) > 1:
            raise DataError(f"the images of {self.source} differ in size: set image_size to scale and crop all of them")
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("this needs the library datasets: pip install 'pdd-lightning[huggingface]'") from error
    return datasets
