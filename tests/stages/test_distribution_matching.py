from functools import partial

import pytest
import torch
from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import start_network
from pdd_lightning.networks import ConvNet, flatten
from pdd_lightning.objectives import distribution_distance
from pdd_lightning.randomness import generator_for
from pdd_lightning.stages import DistributionMatching
from tests.tiny import change, started


class Plain(nn.Module):
    """A network without features."""

    def __init__(self, channels, classes, size):
        super().__init__()
        self.layer = nn.Linear(channels * size * size, classes)


@pytest.fixture
def make(blobs, monkeypatch):
    def build(network, union=None, **options):
        stage = DistributionMatching(network, **options)
        data = started(blobs)
        change(data, union=data.union if union is None else union)
        monkeypatch.setattr(DistributionMatching, "data", property(lambda self: data))
        stage.setup("fit")
        stage.restart(generator_for(0, "images"))
        return stage, data

    return build


class Theta:
    """One trained network, as the pool of a later stage."""

    number = 1

    def __init__(self, params):
        self.params = params

    def segment(self, expert, first, last):
        assert (expert, first, last) == (0, 0, 0)
        return self.params, self.params


def test_the_loss_is_the_distance_of_mean_features_of_real_and_union(make, factory, staged_blobs):
    stage, data = make(factory, staged_blobs, ipc=2, augment="none", real_batch=5)
    count = sum(parameter.numel() for parameter in factory(3, 3, 8).parameters())
    change(data, trajectories=Theta(torch.linspace(-0.5, 0.5, count)))
    batch = stage.draw_batch(0, generator_for(0, "batch"))
    loss = stage.matching_loss(batch)
    loss.backward()

    network = start_network(stage.build_network, batch.start).eval()
    assert torch.equal(flatten(dict(network.named_parameters())), data.state.trajectories.params)
    union = torch.cat([staged_blobs.images, stage.images.detach()])
    labels = torch.cat([staged_blobs.labels, stage.labels])
    sides = [[network.features(union[labels == c]).mean(0) for c in range(3)]]
    sides.append(
        [
            network.features(stage.data.class_sampler(stage.device).images[batch.real.of_class(c)]).mean(0)
            for c in range(3)
        ]
    )
    expected = distribution_distance(*map(torch.stack, sides))
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert batch.real.counts == [5, 5, 5]
    assert stage.images.grad.abs().amax(dim=(1, 2, 3)).gt(0).all()


def test_each_iteration_has_a_network_of_its_own(make, factory):
    stage, _ = make(factory)
    seeds = {stage.draw_batch(0, generator_for(0, "batch", number)).start.seed for number in range(5)}
    assert len(seeds) == 5


def test_batch_norm_networks_do_not_depend_on_the_synthetic_batch(make):
    """With statistics of real images, one class's images do not change the gradient of another's."""
    gradients = []
    for shift in (0.0, 3.0):
        stage, _ = make(partial(ConvNet, depth=2, width=4, norm="batch"), augment="none")
        with torch.no_grad():
            stage.images[2] += shift
        stage.matching_loss(stage.draw_batch(0, generator_for(0, "batch"))).backward()
        gradients.append(stage.images.grad)
    torch.testing.assert_close(gradients[0][:2], gradients[1][:2])
    assert not torch.allclose(gradients[0][2], gradients[1][2])


def test_a_network_without_features_is_refused(make):
    with pytest.raises(ConfigError, match="Plain has no part `features`"):
        make(Plain)


def test_settings_that_cannot_work_are_refused(factory):
    with pytest.raises(ConfigError, match="real_batch must be >= 1, got 0"):
        DistributionMatching(factory, real_batch=0)
