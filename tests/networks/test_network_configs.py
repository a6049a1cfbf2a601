"""Every network of configs/network learns."""

from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from pdd_lightning.augment import DSA
from pdd_lightning.data.splits import EncodedImages
from pdd_lightning.networks.spec import factory_from_spec
from pdd_lightning.training import TrainingSettings, train_network

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "network").glob("*.yaml"))


@pytest.fixture(scope="module")
def images(blobs):
    """Two blobs of each class, enlarged to 16 pixels, and their labels."""
    chosen = torch.cat([blobs.train.images_of_class(label)[:2] for label in range(3)])
    encoded = EncodedImages(blobs.train.images, blobs.pixels)[chosen]
    return F.interpolate(encoded, scale_factor=2), blobs.train.labels[chosen]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_learns_blobs_and_gives_images_a_gradient(path, images):
    spec = yaml.safe_load(path.read_text())
    torch.manual_seed(0)
    network = factory_from_spec({"init_args": {}, **spec})(3, 3, 16)
    fresh = images[0][:4].clone().requires_grad_()
    network.eval()
    F.cross_entropy(network(fresh), images[1][:4]).backward()
    assert bool((fresh.grad.abs().amax((1, 2, 3)) > 0).all())
    settings = TrainingSettings(epochs=8, lr=0.02, batch_size=6, milestones=())
    curve = train_network(network, *images, settings, DSA("none"), torch.Generator().manual_seed(0))
    assert curve[-1].loss < 0.97 * curve[0].loss
