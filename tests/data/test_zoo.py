"""The package's own distilled sets are whole, and train networks to about what is said of them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from pdd_lightning import DistilledDataset
from pdd_lightning.data import Digits, hub
from pdd_lightning.networks.spec import factory_from_spec
from pdd_lightning.randomness import seeded

LEAST = {"digits_mtt": 0.9}
"""Validation accuracy of a network that is trained for a short while; random real images give less."""


def test_all_sets_are_tested_and_small() -> None:
    assert set(hub.zoo()) == set(LEAST)
    assert all((hub.ZOO / name / hub.FILE).stat().st_size < 2_000_000 for name in LEAST)


@pytest.mark.parametrize("name", list(LEAST))
def test_a_network_learns_from_it(name: str) -> None:
    distilled = DistilledDataset.load(f"zoo:{name}")
    real = Digits(test_fraction=0.2, val_fraction=0.2)
    real.setup()
    assert real.fingerprint == distilled.metadata["dataset"]["fingerprint"]
    with seeded(1, "a network"):
        network = factory_from_spec(distilled.metadata["network"])(*distilled.images.shape[1:2], 10, 8)
    for stage in range(1, distilled.num_stages + 1):
        union = distilled.union(stage)
        optimizer = torch.optim.SGD(network.parameters(), distilled.learning_rate(stage), momentum=0.9)
        for _ in range(60):
            optimizer.zero_grad()
            cross_entropy(network(union.images), union.labels).backward()
            optimizer.step()
    with torch.no_grad():
        answers = network(distilled.pixels.encode(real.val.images / 255)).argmax(1)
    assert float((answers == real.val.labels).float().mean()) > LEAST[name]
