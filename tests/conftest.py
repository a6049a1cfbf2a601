"""Fixtures that many tests share: generated images, a small network, a small staged set."""

import os
from functools import partial

import pytest
import torch

from pdd_lightning.data.splits import to_unit
from pdd_lightning.data.synthetic import SyntheticSet
from pdd_lightning.kernels.compiled import library
from pdd_lightning.networks import ConvNet
from pdd_lightning.typing import NetworkFactory
from tests.tiny import Blobs

# Networks as small as those of the tests are slower on several threads, and pytest's workers share the cores.
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that tests start
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Compiles the kernels before there are workers, each of which would compile them."""
    if not hasattr(config, "workerinput"):
        library()


@pytest.fixture(scope="session")
def blobs() -> Blobs:
    """Coloured blobs, loaded; tests share them and leave them as they are."""
    data = Blobs()
    data.setup()
    return data


@pytest.fixture(scope="session")
def factory() -> NetworkFactory:
    """Makes a network of a few hundred parameters that suits 8 pixels."""
    return partial(ConvNet, depth=2, width=8)


@pytest.fixture(scope="session")
def staged_blobs(blobs: Blobs) -> SyntheticSet:
    """Real blobs as a set of two stages: one image per class at rate 0.02, then two per class without a rate."""
    members = [blobs.train.images_of_class(label)[:3] for label in range(3)]
    staged = SyntheticSet.empty(blobs.image_shape)
    for columns, rate in ((slice(0, 1), 0.02), (slice(1, 3), None)):
        positions = torch.cat([positions[columns] for positions in members])
        images = blobs.pixels.encode(to_unit(blobs.train.images[positions]))
        staged = staged.append(images, blobs.train.labels[positions], rate)
    return staged
