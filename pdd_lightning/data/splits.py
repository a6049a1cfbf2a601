"""Parts of a real image set, the stratified split that makes two of one, and batches of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.errors import ConfigError, DamagedFileError, DataError
from pdd_lightning.stored import ClassNames, validate_as

_MAX_ENCODED_BYTES = 2**30
_CHUNK_SIZE = 4096


@dataclass(frozen=True)
class ImageSplit:
    """One part (train, validation or test) of a real image set, in memory.

    Attributes:
        images: `[N, C, H, W]` uint8.
        labels: `[N]` int64.
        indices: `[N]` int64, the index of each example in the source's train (or test) part.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor

    @classmethod
    def in_order(cls, images: Tensor, labels: Tensor) -> ImageSplit:
        """Return the part that holds the entire source, in its order."""
        return cls(images.contiguous(), labels, torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, chosen: Tensor) -> ImageSplit:
        """Return the examples at the indices `chosen` `[n]` of this part."""
        return ImageSplit(self.images[chosen], self.labels[chosen], self.indices[chosen])

    def class_counts(self, num_classes: int) -> Tensor:
        """Return the number of images per class `[num_classes]`."""
        return torch.bincount(self.labels, minlength=num_classes)

    def images_of_class(self, label: int) -> Tensor:
        """Return the indices `[n]` in this part of the images of one class, ascending."""
        return (self.labels == label).nonzero().flatten()


def stratified_holdout(
    split: ImageSplit, fraction: float, seed: int, class_names: Sequence[str], purpose: str
) -> tuple[ImageSplit, ImageSplit]:
    """Split a part in two at random, class by class.

    Args:
        split: The part to split.
        fraction: Share of each class to hold out, in (0, 1); at least one image of each class is held out
            and at least one stays.
        seed: Equal seeds give equal splits on every machine.
        class_names: Name of each class, by label.
        purpose: Name of the held-out part in error messages.

    Returns:
        The rest and the held-out part, both in the original order.

    Raises:
        DataError: A class has fewer than two images.
    """
    counts = split.class_counts(len(class_names)).tolist()
    for name, count in zip(class_names, counts, strict=True):
        if count < 2:
            raise DataError(
                f"class {name!r} has {count} image(s) left, too few to give both training and "
                f"{purpose} images: add images to it or remove the class"
            )
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label, count in enumerate(counts):
        number = min(max(1, round(fraction * count)), count - 1)
        order = torch.randperm(count, generator=generator)
        held[split.images_of_class(label)[order[:number]]] = True
    return split.subset((~held).nonzero().flatten()), split.subset(held.nonzero().flatten())


class EncodedImages:
    """Images in model space on a device, indexed by batch.

    All images are encoded once if that takes no more than 1 GiB; a larger set stays on the device as uint8 and is
    encoded batch by batch.

    Args:
        images: `[N, C, H, W]` uint8.
        pixels: The pixel space to encode to.
        device: Device of the batches.
    """

    def __init__(self, images: Tensor, pixels: PixelSpace, device: torch.device | str = "cpu") -> None:
        self.pixels = pixels
        self._images = images.to(device)
        self._encoded = images.numel() * 4 <= _MAX_ENCODED_BYTES
        if self._encoded:
            encoded = torch.empty(images.shape, dtype=torch.float32, device=device)
            for target, chunk in zip(encoded.split(_CHUNK_SIZE), self._images.split(_CHUNK_SIZE), strict=True):
                target[:] = self._encode(chunk)
            self._images = encoded

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return the images at `indices` `[n]` as a float32 batch `[n, C, H, W]` in model space."""
        batch = self._images[indices.to(self._images.device)]
        return batch if self._encoded else self._encode(batch)

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """Return a list of images; torch's data loader calls it."""
        return list(self[torch.tensor(indices)])

    def _encode(self, batch: Tensor) -> Tensor:
        return self.pixels.encode(to_unit(batch))


class ClassBatches(NamedTuple):
    """Indices of drawn real images, one row per class; short rows are padded with their first image.

    Attributes:
        indices: Indices in the split `[classes, B]`.
        counts: Number of images in each row, without padding.
    """

    indices: Tensor
    counts: list[int]

    def of_class(self, label: int) -> Tensor:
        """Return the indices `[n]` of one class, without padding."""
        return self.indices[label, : self.counts[label]]

    def joint(self, size: int) -> Tensor:
        """Return the indices `[n]` of up to `size` images of each class, one class after another."""
        return torch.cat([self.of_class(label)[:size] for label in range(len(self.counts))])

    def weights(self) -> Tensor:
        """Return the weight of each image in the mean over its class `[classes, B]`: 0 for padding."""
        counts = torch.tensor(self.counts, device=self.indices.device).unsqueeze(1)
        columns = torch.arange(self.indices.shape[1], device=counts.device)
        return (columns < counts) / counts


class ClassSampler:
    """Draw real images of every class; see `EncodedImages` for the arguments.

    Attributes:
        split: The real images.
        images: Its images in model space, by index.
    """

    def __init__(
        self, split: ImageSplit, num_classes: int, pixels: PixelSpace, device: torch.device | str = "cpu"
    ) -> None:
        self.split = split
        self.images = EncodedImages(split.images, pixels, device)
        self._members = [split.images_of_class(label) for label in range(num_classes)]

    def draw(self, size: int, generator: torch.Generator) -> ClassBatches:
        """Draw `size` different images of each class, or all of a class that has fewer."""
        rows = [members[torch.randperm(len(members), generator=generator)[:size]] for members in self._members]
        width = max(len(row) for row in rows)
        padded = [torch.cat([row, row[:1].expand(width - len(row))]) for row in rows]
        return ClassBatches(torch.stack(padded), [len(row) for row in rows])


def by_class(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sort synthetic images by class, as `[classes, n, C, H, W]`; differentiable.

    Args:
        images: `[classes * n, C, H, W]`, equally many of each class.
        labels: Their classes `[classes * n]`.
        num_classes: Number of classes.
    """
    order = labels.argsort(stable=True)
    return images[order].reshape(num_classes, len(images) // num_classes, *images.shape[1:])


def to_unit(images: Tensor) -> Tensor:
    """Convert uint8 images 0..255 to float32 in [0, 1]."""
    return images.float().div_(255)


def check_fraction(name: str, value: float) -> None:
    """Refuse a fraction out of (0, 1).

    Raises:
        ConfigError: `value` is not strictly between 0 and 1.
    """
    if not 0 < value < 1:
        raise ConfigError(f"{name} must be between 0 and 1, both excluded, got {value}")


def check_split(split: ImageSplit, class_names: Sequence[str], image_shape: torch.Size) -> None:
    """Refuse images that networks cannot process, and labels without a class.

    Raises:
        DataError: Images are not square uint8 of `image_shape` (C, H, W), or a label is out of range.
    """
    images, labels = split.images, split.labels
    if images.dim() != 4 or images.dtype != torch.uint8 or len(images) != len(labels) or len(labels) == 0:
        raise DataError(
            f"images must be [N, C, H, W] uint8 with one label each and N >= 1, "
            f"got {list(images.shape)} {images.dtype} and {len(labels)} labels"
        )
    if images.shape[1:] != image_shape:
        raise DataError(
            f"training images are {list(image_shape)} but test images {list(images.shape[1:])}: "
            "set image_size (ImageFolder) or make them equal"
        )
    if images.shape[2] != images.shape[3]:
        raise DataError(
            f"images must be square, got {images.shape[2]}x{images.shape[3]}: set image_size (ImageFolder) "
            "to scale and crop them"
        )
    try:  # before training rather than when a distilled set is written
        validate_as(ClassNames, list(class_names), "the data")
    except DamagedFileError as error:
        raise DataError(f"class names cannot be stored in files: {str(error).partition('damaged: ')[2]}") from error
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise DataError(
            f"labels must be in 0..{len(class_names) - 1} for {len(class_names)} classes, "
            f"got {int(labels.min())}..{int(labels.max())}"
        )
