"""Batches of one class: what methods that match class by class compare."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pdd_lightning.data.pixels import PixelSpace
from pdd_lightning.data.splits import EncodedImages, ImageSplit


class ClassBatches(NamedTuple):
    """Which real images were drawn, one row per class; short rows are filled up with their first image.

    Attributes:
        positions: Positions in the split `[classes, B]`.
        counts: Number of images of each class that count.
    """

    positions: Tensor
    counts: list[int]

    def of_class(self, label: int) -> Tensor:
        """Positions `[n]` of one class, without what fills the row up."""
        return self.positions[label, : self.counts[label]]

    def joint(self, size: int) -> Tensor:
        """Positions `[n]` of up to `size` images of each class, one class after another."""
        return torch.cat([self.of_class(label)[:size] for label in range(len(self.counts))])

    def weights(self) -> Tensor:
        """Weight of each image in the mean over its class `[classes, B]`: 0 where it only fills the row up."""
        counts = torch.tensor(self.counts, device=self.positions.device).unsqueeze(1)
        columns = torch.arange(self.positions.shape[1], device=counts.device)
        return (columns < counts) / counts


class ClassSampler:
    """Draws real images of every class, and hands them out in model space.

    Args:
        split: Real images.
        num_classes: Number of classes.
        pixels: The pixel space to encode to.
        device: Where the images are wanted.

    Attributes:
        split: The split.
        images: Its images, by position.
    """

    def __init__(
        self, split: ImageSplit, num_classes: int, pixels: PixelSpace, device: torch.device | str = "cpu"
    ) -> None:
        self.split = split
        self.images = EncodedImages(split.images, pixels, device)
        self._members = [split.images_of_class(label) for label in range(num_classes)]

    def draw(self, size: int, generator: torch.Generator) -> ClassBatches:
        """Draws `size` different images of each class, or all of a class that has fewer."""
        rows = [members[torch.randperm(len(members), generator=generator)[:size]] for members in self._members]
        width = max(len(row) for row in rows)
        filled = [torch.cat([row, row[:1].expand(width - len(row))]) for row in rows]
        return ClassBatches(torch.stack(filled), [len(row) for row in rows])


def by_class(images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sorts synthetic images by class, as `[classes, n, C, H, W]`; differentiable.

    Args:
        images: `[classes * n, C, H, W]`, as many of each class.
        labels: Their classes `[classes * n]`.
        num_classes: Number of classes.
    """
    order = labels.argsort(stable=True)
    return images[order].reshape(num_classes, len(images) // num_classes, *images.shape[1:])
