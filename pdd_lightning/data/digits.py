"""Handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

from typing import Literal

import torch

from pdd_lightning.data.real import ImageSplit, RealDataModule
from pdd_lightning.data.splits import check_fraction


class Digits(RealDataModule):
    """Scikit-learn's digits: 1,797 images, 1x8x8, 10 classes, with a test part held out at random.

    The 17 grey levels 0..16 are spread over 0..255.

    Args:
        test_fraction: Share of each class held out for testing.
        val_fraction: Share of each class's remaining images held out for validation.
        seed: Seed of both splits.
        normalization: "standard" or "zca".
        mean: Channel means on the [0, 1] scale; those of the train part by default.
        std: Channel standard deviations, given together with `mean`.
        batch_size: Images per batch of the data loaders.
    """

    def __init__(
        self,
        test_fraction: float = 0.2,
        val_fraction: float = 0.1,
        seed: int = 0,
        normalization: Literal["standard", "zca"] = "standard",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 256,
    ) -> None:
        super().__init__(val_fraction, seed, normalization, mean, std, batch_size)
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
