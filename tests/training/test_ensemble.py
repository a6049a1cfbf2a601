"""Networks trained at once are those trained one by one."""

import copy
from functools import partial
from itertools import chain

import pytest
import torch

from pdd_lightning.augment import DSA
from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, ResNet10
from pdd_lightning.training import TrainingSettings, check_at_once, train_network, train_networks
from tests.tiny import DropoutNet

NUMBER = 3
EVERYTHING = "color_crop_cutout_flip_scale_rotate"


@pytest.fixture
def sets():
    """Of each network eleven images of its own, with labels, in float64."""
    source = torch.Generator().manual_seed(0)
    images = [torch.randn(11, 3, 8, 8, dtype=torch.float64, generator=source) for _ in range(NUMBER)]
    return images, [torch.randint(3, (11,), generator=source) for _ in range(NUMBER)]


def build(family):
    """Networks with different weights, in float64."""
    networks = []
    for seed in range(NUMBER):
        torch.manual_seed(seed)
        networks.append(family(3, 3, 8).double())
    return networks


def generators():
    return [torch.Generator().manual_seed(seed) for seed in range(NUMBER)]


def assert_same(networks, others, rtol=1e-8):
    for network, other in zip(networks, others, strict=True):
        torch.testing.assert_close(network.state_dict(), other.state_dict(), rtol=rtol, atol=1e-10)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        (partial(ConvNet, depth=2, width=4), {"batch_size": 4}),
        (partial(ConvNet, depth=2, width=4), {"batch_size": 20, "cutmix": 0.5, "momentum": 0.0, "weight_decay": 0.0}),
        (partial(ConvNet, depth=1, width=4, norm="none"), {"batch_size": 4, "milestones": (0.3, 0.6), "gamma": 0.2}),
        (partial(ConvNet, depth=2, width=4, norm="batch"), {"batch_size": 4}),
        (partial(ResNet10, width=4), {"batch_size": 4}),
    ],
)
@pytest.mark.parametrize("strategy", ["none", EVERYTHING])
def test_all_end_where_each_would_alone(sets, family, options, strategy):
    """Weights, running statistics, records, and what is left in the generators."""
    settings, augment = TrainingSettings(epochs=4, lr=0.05, **options), DSA(strategy)
    networks, sources, others = build(family), generators(), generators()
    alone = copy.deepcopy(networks)
    curves = train_networks(networks, *sets, settings, augment, sources)
    expected = [
        train_network(network, images, labels, settings, augment, source)
        for network, images, labels, source in zip(alone, *sets, others, strict=True)
    ]
    assert_same(networks, alone)
    for own, other in zip(chain.from_iterable(curves), chain.from_iterable(expected), strict=True):
        assert own[:2] == pytest.approx(other[:2], rel=1e-5) and torch.equal(own.correct, other.correct)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(sources, others, strict=True))
    assert all(network.training for network in networks)


def test_soft_labels_and_one_set_for_all(sets):
    images, soft = sets[0][0], torch.nn.functional.one_hot(sets[1][0], 3) * 0.8 + 0.2 / 3
    settings, augment = TrainingSettings(epochs=3, batch_size=4), DSA("crop")
    networks = build(partial(ConvNet, depth=1, width=4))
    alone = copy.deepcopy(networks)
    train_networks(networks, [images] * NUMBER, [soft.double()] * NUMBER, settings, augment, generators())
    for network, source in zip(alone, generators(), strict=True):
        train_network(network, images, soft.double(), settings, augment, source)
    assert_same(networks, alone)


def test_on_epoch_is_told_of_each_epoch(sets):
    networks, told = build(partial(ConvNet, depth=1, width=4)), []
    settings = TrainingSettings(epochs=3, batch_size=4)
    curves = train_networks(networks, *sets, settings, DSA("none"), generators(), lambda *words: told.append(words))
    assert [done for done, _ in told] == [1, 2, 3]
    for epoch, (_, records) in enumerate(told):
        assert all(record is curve[epoch] for record, curve in zip(records, curves, strict=True))


def test_one_network_is_trained_as_ever(sets):
    """Also where several could not be: with dropout and sharpness-aware steps; bit for bit."""
    network, told = build(DropoutNet)[0], []
    other, settings = copy.deepcopy(network), TrainingSettings(epochs=2, batch_size=4, rho=0.1)
    words = ([sets[0][0]], [sets[1][0]], settings, DSA("crop"), generators()[:1], lambda *words: told.append(words))
    (curve,) = train_networks([network], *words)
    train_network(other, sets[0][0], sets[1][0], settings, DSA("crop"), generators()[0])
    assert_same([network], [other], rtol=0)
    assert [(done, records[0]) for done, records in told] == list(enumerate(curve, 1))


def test_no_epochs_change_nothing(sets):
    networks = build(partial(ConvNet, depth=1, width=4))
    before = copy.deepcopy(networks)
    assert train_networks(networks, *sets, TrainingSettings(epochs=0), DSA("none"), generators()) == [[], [], []]
    assert_same(networks, before, rtol=0)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad])
def test_it_trains_inside_evaluation_hooks(sets, context):
    networks = build(partial(ConvNet, depth=1, width=4))
    before = copy.deepcopy(networks)
    with context():
        train_networks(networks, *sets, TrainingSettings(epochs=1), DSA("none"), generators())
    with pytest.raises(AssertionError):
        assert_same(networks, before)
    assert not any(parameter.is_inference() for network in networks for parameter in network.parameters())


def test_what_has_to_be_trained_one_by_one_is_refused(sets):
    networks = build(partial(ConvNet, depth=1, width=4))
    with pytest.raises(ConfigError, match=r"DropoutNet cannot be trained at once .* random numbers"):
        train_networks(build(DropoutNet), *sets, TrainingSettings(epochs=1), DSA("none"), generators())
    with pytest.raises(ConfigError, match="rho"):
        train_networks(networks, *sets, TrainingSettings(epochs=1, rho=0.1), DSA("none"), generators())
    shorter = [sets[0][0][:5], *sets[0][1:]]
    with pytest.raises(ConfigError, match=r"equally many images each, got \[5, 11\]"):
        train_networks(networks, shorter, sets[1], TrainingSettings(epochs=1), DSA("none"), generators())


def test_a_trial_tells_whether_networks_can_be_trained_at_once():
    """Before anything else is done, and without a trace in the global generator."""
    before, shape, cpu = torch.get_rng_state(), (3, 8, 8), torch.device("cpu")
    check_at_once(lambda: ConvNet(3, 3, 8, depth=1, width=4), shape, cpu)
    with pytest.raises(ConfigError, match="DropoutNet cannot be trained at once"):
        check_at_once(lambda: DropoutNet(3, 3, 8), shape, cpu)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_errors_are_told_as_they_are(sets):
    """Images that the networks are not made for have nothing to do with training at once."""
    networks = build(partial(ConvNet, depth=1, width=4))
    wrong = [images[:, :2] for images in sets[0]]
    with pytest.raises(RuntimeError, match="channels"):
        train_networks(networks, wrong, sets[1], TrainingSettings(epochs=1), DSA("none"), generators())
