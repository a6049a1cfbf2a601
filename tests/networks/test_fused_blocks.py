"""When a ConvNet's blocks are computed in few passes, and that nobody notices but by the clock."""

from unittest import mock

import pytest
import torch
from torch import nn

from pdd_lightning.kernels.compiled import library
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.convnet import Blocks

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def compiled() -> None:
    if library() is None:
        pytest.skip("no C++ compiler here, so that there are no kernels")


def fused(network: ConvNet, images: torch.Tensor = IMAGES) -> bool:
    """Whether the features are computed without a call of their modules."""
    with mock.patch.object(nn.Conv2d, "forward", side_effect=nn.Conv2d.forward, autospec=True) as called:
        network.features(images)
    return not called.called


def net(**options) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(3, 4, 16, **{"width": 8, **options})


def module_by_module(features: nn.Module, images: torch.Tensor) -> torch.Tensor:
    for module in features.children():
        images = module(images)
    return images


def test_features_and_gradients_are_those_of_the_modules():
    network = net()
    assert fused(network)
    results = []
    for compute in (network.features, lambda images: module_by_module(network.features, images)):
        features = compute(IMAGES)
        results.append([features, *torch.autograd.grad(features.square().sum(), network.features.parameters())])
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


def test_the_last_map_is_flattened_channel_by_channel():
    network = net(depth=1)
    torch.testing.assert_close(network.features(IMAGES), module_by_module(network.features, IMAGES))


def test_hooks_are_called():
    network, seen = net(), []
    network.features[2].register_forward_hook(lambda *_: seen.append("relu"))
    network(IMAGES)
    assert seen == ["relu"] and not fused(network)


def test_a_hook_on_the_features_as_a_whole_sees_them():
    network, seen = net(), []
    network.features.register_forward_hook(lambda module, given, result: seen.append(result))
    network(IMAGES)
    assert fused(network) and seen[0].shape == (2, 32)


def change(network: ConvNet, what: str) -> None:
    features = network.features
    if what == "leaky":
        features[2] = nn.LeakyReLU()
    elif what == "stride":
        features[0].stride = (2, 2)
    elif what == "max pool":
        features[3] = nn.MaxPool2d(2)
    elif what == "inserted":
        features.insert(0, nn.Identity())
    elif what == "no scale":
        features[1] = nn.GroupNorm(8, 8, affine=False)


@pytest.mark.parametrize("what", ["leaky", "max pool", "inserted", "no scale", "stride"])
def test_other_modules_are_called_as_they_are(what):
    network = net(depth=2)
    change(network, what)
    assert not fused(network)
    torch.testing.assert_close(network.features(IMAGES), module_by_module(network.features, IMAGES))


def test_parameters_have_the_names_and_order_that_they_always_had():
    names = [name for name, _ in net(depth=2).named_parameters()]
    expected = [f"features.{number}.{kind}" for number in (0, 1, 4, 5) for kind in ("weight", "bias")]
    assert names == [*expected, "classifier.weight", "classifier.bias"]
    assert isinstance(net().features, Blocks)


def test_types_that_do_not_fit_are_reported_as_always():
    with pytest.raises(RuntimeError):
        net()(IMAGES.double())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_features_are_those_outside_of_it(dtype):
    network = net()
    with torch.autocast("cpu", dtype):
        features, logits = network.features(IMAGES), network(IMAGES)
    assert torch.equal(features, network.features(IMAGES))
    assert logits.dtype == dtype


def test_other_devices_and_types_are_left_to_torch():
    assert net().to("meta").features(IMAGES.to("meta")).shape == (2, 32)
    assert not fused(net().bfloat16(), IMAGES.bfloat16()) and not fused(net(), IMAGES[:0])
