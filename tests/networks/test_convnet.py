import pytest
import torch
from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("classes", "size", "depth", "expected"),
    [(10, 32, 3, 320_010), (100, 32, 3, 504_420), (200, 64, 4, 857_160)],
)
def test_published_parameter_counts(classes, size, depth, expected):
    assert count(ConvNet(3, classes, size, depth)) == expected


@pytest.mark.parametrize(("channels", "size", "features"), [(1, 28, 4 * 4 * 8), (3, 28, 3 * 3 * 8), (1, 32, 4 * 4 * 8)])
def test_only_small_digits_are_padded_to_32(channels, size, features):
    network = ConvNet(channels, 10, size, width=8)
    images = torch.randn(2, channels, size, size)
    assert network.features(images).shape == (2, features)
    assert network(images).shape == (2, 10)


@pytest.mark.parametrize("norm", ["instance", "batch", "layer", "group", "none"])
def test_logits_are_the_classifier_of_the_features(norm):
    network = ConvNet(3, 5, 16, depth=2, width=8, norm=norm)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images), network.classifier(network.features(images)))


@pytest.mark.parametrize("norm", ["instance", "layer", "group"])
def test_norm_of_a_sample_ignores_the_rest_of_the_batch(norm):
    network = ConvNet(3, 5, 16, depth=2, width=8, norm=norm)
    images = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_instance_norm_removes_contrast_per_channel_but_layer_norm_keeps_ratios():
    maps = torch.randn(2, 8, 4, 4)
    scaled = maps * torch.arange(1.0, 9.0).view(1, 8, 1, 1)
    instance = ConvNet(8, 5, 16, 1, 8, norm="instance").features[1]
    layer = ConvNet(8, 5, 16, 1, 8, norm="layer").features[1]
    torch.testing.assert_close(instance(scaled), instance(maps), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(layer(scaled), layer(maps), rtol=0.1, atol=0.1)


def test_too_deep_is_refused_with_the_largest_depth_that_fits():
    ConvNet(3, 10, 8, depth=3)
    with pytest.raises(ConfigError, match=r"depth 4 .* 8 pixels.* must be from 1 to 3"):
        ConvNet(3, 10, 8, depth=4)
    with pytest.raises(ConfigError, match="depth 0"):
        ConvNet(3, 10, 8, depth=0)


def test_bad_norms_are_refused():
    with pytest.raises(ConfigError, match="unknown norm 'weight'"):
        ConvNet(3, 10, 8, norm="weight")
    with pytest.raises(ConfigError, match="divisible by 4, got 6"):
        ConvNet(3, 10, 8, width=6, norm="group")
