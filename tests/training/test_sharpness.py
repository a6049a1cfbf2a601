import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.experts import ExpertSettings
from pdd_lightning.training import TrainingSettings, train_network
from pdd_lightning.training.sharpness import sharpen_gradients

PLAIN = DSA("none")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def toy():
    """Ten images of three classes and a network of two layers, all in float64."""
    images = torch.randn(10, 1, 4, 4, dtype=torch.float64, generator=generator(1))
    labels = torch.randint(3, (10,), generator=generator(2))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    return network, images, labels


def vector(network):
    return nn.utils.parameters_to_vector(network.parameters()).detach()


def gradient(network, images, labels, at):
    """Gradient of the loss at a parameter vector, as a vector."""
    other = copy.deepcopy(network)
    nn.utils.vector_to_parameters(at, other.parameters())
    return torch.cat(
        [slope.flatten() for slope in torch.autograd.grad(F.cross_entropy(other(images), labels), other.parameters())]
    )


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_step_is_the_one_written_by_hand(toy, alpha):
    network, images, labels = toy
    rho, lr, w = 0.3, 0.1, vector(network)
    g = gradient(network, images, labels, w)
    climbed = w + rho * w * w * g / (w * g).norm()
    there = gradient(network, images, labels, climbed)
    parallel = (g @ there) / (there @ there) * there
    expected = w - lr * (there - alpha * (g - parallel))
    settings = TrainingSettings(1, lr, momentum=0, weight_decay=0, milestones=(), rho=rho, alpha=alpha)
    train_network(network, images, labels, settings, PLAIN, generator())
    torch.testing.assert_close(vector(network), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(vector(network), w - lr * g, rtol=1e-3)


def test_several_steps_go_on_from_where_the_last_one_ended(toy):
    """The climb leaves no trace in the weights, and momentum works on the new gradients."""
    network, images, labels = toy
    w, velocity = vector(network), 0
    for _ in range(3):
        g = gradient(network, images, labels, w)
        velocity = 0.9 * velocity + gradient(network, images, labels, w + 0.2 * w * w * g / (w * g).norm())
        w = w - 0.1 * velocity
    settings = TrainingSettings(3, 0.1, momentum=0.9, weight_decay=0, milestones=(), rho=0.2)
    train_network(network, images, labels, settings, PLAIN, generator())
    torch.testing.assert_close(vector(network), w, rtol=1e-9, atol=1e-12)


def test_a_vanishing_radius_is_the_plain_step(toy):
    network, images, labels = toy
    plain, sharp = copy.deepcopy(network), copy.deepcopy(network)
    train_network(plain, images, labels, TrainingSettings(2), PLAIN, generator())
    train_network(sharp, images, labels, TrainingSettings(2, rho=1e-9, alpha=0.4), PLAIN, generator())
    torch.testing.assert_close(vector(sharp), vector(plain), rtol=1e-6, atol=1e-9)


def test_both_passes_see_the_same_augmented_batch(toy):
    _, images, labels = toy
    seen = []

    class Watching(nn.Linear):
        def forward(self, batch):
            seen.append(batch.detach().clone())
            return super().forward(batch.flatten(1))

    train_network(Watching(16, 3).double(), images, labels, TrainingSettings(2, rho=0.1), DSA("crop"), generator())
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_the_climb_leaves_running_statistics_and_weights_alone(toy):
    _, images, labels = toy
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    F.cross_entropy(network(images), labels).backward()
    before = copy.deepcopy(network.state_dict())
    slopes = [parameter.grad.clone() for parameter in network.parameters()]
    sharpen_gradients(network, images, labels, 0.5, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not torch.equal(network[1].weight.grad, slopes[0])


def test_a_gradient_of_zero_stays_finite(toy):
    """At zero weights nothing climbs, and a network that cannot learn has no gradient to share out."""
    network, images, labels = toy
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    train_network(network, images, labels, TrainingSettings(2, rho=0.1, alpha=0.4), PLAIN, generator())
    assert vector(network).isfinite().all()


def test_flat_experts_are_another_setting_of_the_same_training():
    assert ExpertSettings(rho=0.01, alpha=0.4).training(3).rho == 0.01
    assert ExpertSettings(rho=0.01, alpha=0.4).training(3).alpha == 0.4
    for bad, message in ({"rho": -1.0}, "rho"), ({"rho": 0.1, "alpha": -1.0}, "alpha"), ({"alpha": 0.4}, "set rho > 0"):
        with pytest.raises(ConfigError, match=message):
            ExpertSettings(**bad)
