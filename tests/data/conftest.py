from collections.abc import Callable

import pytest
import torch

from pdd_lightning.data import ImageSplit, RealDataModule
from pdd_lightning.data.synthetic import SyntheticSet

CLASS_NAMES = ["circle", "square", "star"]


class SmallSet(RealDataModule):
    """Random images of three classes; the sizes of the parts and their content are the test's choice."""

    def __init__(self, train_counts=(20, 20, 10), test_counts=(4, 4, 4), content=0, side=4, **options):
        super().__init__(**options)
        self.train_counts, self.test_counts = train_counts, test_counts
        self.content, self.side = content, side
        self.loads = 0

    def load(self):
        self.loads += 1
        generator = torch.Generator().manual_seed(self.content)
        train = self.part(self.train_counts, generator)
        test = None if self.test_counts is None else self.part(self.test_counts, generator)
        return train, test, CLASS_NAMES

    def part(self, counts, generator):
        labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        labels = labels[torch.randperm(len(labels), generator=generator)]
        shape = (len(labels), 3, self.side, self.side)
        return ImageSplit.in_order(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator), labels)


@pytest.fixture
def small_set() -> Callable[..., SmallSet]:
    """Makes small image sets; options as those of `SmallSet`."""
    return SmallSet


@pytest.fixture
def staged_set() -> SyntheticSet:
    """Two stages of three images each, the second without a learned rate."""
    generator = torch.Generator().manual_seed(7)
    labels = torch.tensor([0, 1, 2])
    first, second = torch.randn(2, 3, 3, 4, 4, generator=generator)
    return SyntheticSet.empty((3, 4, 4)).append(first, labels, 0.02).append(second, labels.flip(0))
