"""Small generated things that many tests share."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pdd_lightning.data.progressive import ProgressiveDataModule, RunState
from pdd_lightning.data.real import ImageSplit, RealDataModule
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.networks import ConvNet

NAMES = ["red", "green", "blue"]


class Blobs(RealDataModule):
    """Coloured blobs on a noisy ground, 3 x 8 x 8: three classes told apart by the colour of the blob.

    A small network learns them within a few dozen steps, and chance is one in three.

    Args:
        train_per_class: Training images of each class, before the validation part is taken out.
        test_per_class: Test images of each class.
        content: Seed of the images; the split has its own.
        val_fraction: See `RealDataModule`.
        seed: See `RealDataModule`.
        normalization: See `RealDataModule`.
        batch_size: See `RealDataModule`.
    """

    def __init__(
        self,
        train_per_class: int = 24,
        test_per_class: int = 8,
        content: int = 0,
        val_fraction: float = 0.25,
        seed: int = 0,
        normalization: Literal["standard", "zca"] = "standard",
        batch_size: int = 256,
    ) -> None:
        super().__init__(val_fraction, seed, normalization, batch_size=batch_size)
        self.train_per_class = train_per_class
        self.test_per_class = test_per_class
        self.content = content

    def load(self) -> tuple[ImageSplit, ImageSplit, list[str]]:
        """Draws the images."""
        generator = torch.Generator().manual_seed(self.content)
        train, test = (_part(count, generator) for count in (self.train_per_class, self.test_per_class))
        return train, test, list(NAMES)


def _part(per_class: int, generator: torch.Generator) -> ImageSplit:
    """`per_class` images of each class, in random order."""
    labels = torch.arange(len(NAMES)).repeat(per_class)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centres = 2 + 3 * torch.rand(len(labels), 2, generator=generator)
    heights = 0.5 + 0.5 * torch.rand(len(labels), generator=generator)
    images = 0.25 * torch.rand(len(labels), 3, 8, 8, generator=generator)
    images[torch.arange(len(labels)), labels] += heights.view(-1, 1, 1) * _bumps(centres)
    return ImageSplit.in_order((images.clamp(0, 1) * 255).round().to(torch.uint8), labels)


def _bumps(centres: Tensor) -> Tensor:
    """A round bump of height 1 about each centre `[N, 2]`, as `[N, 8, 8]`."""
    squares = (torch.arange(8) - centres.unsqueeze(2)).square()
    distance = squares[:, 0].unsqueeze(2) + squares[:, 1].unsqueeze(1)
    return torch.exp(-distance / 4)


class DropoutNet(ConvNet):
    """A small ConvNet that draws random numbers in each training pass."""

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size, depth=2, width=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(nn.functional.dropout(self.features(images), 0.5, self.training))


def started(real: RealDataModule, decode_factor: int = 1, **state: object) -> ProgressiveDataModule:
    """A data module whose run has begun, as `StageAdvance` begins it; without a trainer."""
    data = ProgressiveDataModule(real)
    data.setup()
    data.state = RunState(SyntheticSet.empty(real.image_shape, decode_factor), num_stages=5, iterations=10)
    change(data, **state)
    return data


def change(data: ProgressiveDataModule, **state: object) -> None:
    """Brings the run to another state, as `StageAdvance` does."""
    data.state = replace(data.state, **state)


class Watched(ConvNet):
    """A small ConvNet that remembers the images it is trained on.

    Attributes:
        seen: Batches of all such networks, in order; tests clear it.
    """

    seen: ClassVar[list[Tensor]] = []

    def __init__(self, in_channels: int, num_classes: int, image_size: int) -> None:
        super().__init__(in_channels, num_classes, image_size, depth=2, width=4)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.seen.append(images.detach().clone())
        return super().forward(images)


def image_set(images: Tensor) -> set[bytes]:
    """Images `[N, C, H, W]` without their order."""
    return {image.numpy().tobytes() for image in images.detach()}
