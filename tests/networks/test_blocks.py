"""When a ConvNet's blocks are computed in few passes, and that nobody notices but by the clock."""

import pytest
import torch
from torch import nn

from pdd_lightning.kernels.compiled import library
from pdd_lightning.networks import ConvNet
from pdd_lightning.networks.blocks import Blocks, fused_blocks

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def compiled() -> None:
    if library() is None:
        pytest.skip("no C++ compiler here, so that there are no kernels")


def net(**options) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(3, 4, 16, **{"width": 8, **options})


def module_by_module(features: nn.Module, images: torch.Tensor) -> torch.Tensor:
    for module in features.children():
        images = module(images)
    return images


def test_features_and_gradients_are_those_of_the_modules():
    network = net()
    assert len(fused_blocks(network.features, IMAGES)) == 3
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
    assert seen == ["relu"] and fused_blocks(network.features, IMAGES) is None


def test_a_hook_on_the_features_as_a_whole_sees_them():
    network, seen = net(), []
    network.features.register_forward_hook(lambda module, given, result: seen.append(result))
    network(IMAGES)
    assert fused_blocks(network.features, IMAGES) and seen[0].shape == (2, 32)


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


@pytest.mark.parametrize("what", ["leaky", "max pool", "inserted", "no scale"])
def test_other_modules_are_called_as_they_are(what):
    network = net()
    change(network, what)
    assert fused_blocks(network.features, IMAGES) is None
    torch.testing.assert_close(network.features(IMAGES), module_by_module(network.features, IMAGES))


def test_a_stride_is_not_overlooked():
    network = net(depth=2)
    change(network, "stride")
    assert fused_blocks(network.features, IMAGES) is None


def test_parameters_have_the_names_and_order_that_they_always_had():
    names = [name for name, _ in net(depth=2).named_parameters()]
    expected = [f"features.{number}.{kind}" for number in (0, 1, 4, 5) for kind in ("weight", "bias")]
    assert names == [*expected, "classifier.weight", "classifier.bias"]
    assert isinstance(net().features, Blocks)


def test_types_that_do_not_fit_are_reported_as_always():
    with pytest.raises(RuntimeError):
        net()(IMAGES.double())


def test_under_autocast_features_keep_the_type_of_the_images():
    network = net()
    with torch.autocast("cpu", torch.bfloat16):
        features = network.features(IMAGES)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, network.features(IMAGES), rtol=0.1, atol=0.05)


def test_other_types_under_autocast_are_left_to_torch():
    network = net()
    with torch.autocast("cpu", torch.float16):
        assert fused_blocks(network.features, IMAGES) is None and network(IMAGES).isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        exact = network.double().features(IMAGES.double())
    torch.testing.assert_close(exact, module_by_module(network.features, IMAGES.double()))
