import pytest
import torch

from pdd_lightning.data.synthetic import SyntheticSet
from tests.tiny import Blobs


@pytest.fixture
def soft(staged_blobs: SyntheticSet) -> SyntheticSet:
    """The set with class probabilities for labels."""
    logits = torch.randn(len(staged_blobs), 3, generator=torch.Generator().manual_seed(2))
    return SyntheticSet(staged_blobs.images, logits.softmax(1), staged_blobs.stages, staged_blobs.learning_rates)


@pytest.fixture
def even(staged_blobs: SyntheticSet) -> SyntheticSet:
    """Two stages of one image per class each, with learned rates that 32 bits cannot hold."""
    first, second = staged_blobs.stage(1), staged_blobs.stage(2)
    chosen = torch.tensor([4, 0, 2])  # in another order of classes than stage 1
    start = SyntheticSet.empty((3, 8, 8)).append(first.images, first.labels, 0.02)
    return start.append(second.images[chosen], second.labels[chosen], 0.013)


@pytest.fixture(scope="session")
def whitened() -> Blobs:
    data = Blobs(normalization="zca")
    data.setup()
    return data
