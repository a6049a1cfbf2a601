import pytest
import torch

from pdd_lightning.networks import ConvNet


@pytest.mark.parametrize(
    ("classes", "size", "depth", "expected"),
    [(10, 32, 3, 320_010), (100, 32, 3, 504_420), (200, 64, 4, 857_160)],
)
def test_published_parameter_counts(classes, size, depth, expected):
    assert sum(parameter.numel() for parameter in ConvNet(3, classes, size, depth).parameters()) == expected


@pytest.mark.parametrize(("channels", "size", "features"), [(1, 28, 4 * 4 * 8), (3, 28, 3 * 3 * 8), (1, 32, 4 * 4 * 8)])
def test_only_small_digits_are_padded_to_32(channels, size, features):
    network = ConvNet(channels, 10, size, width=8)
    images = torch.randn(2, channels, size, size)
    assert network.features(images).shape == (2, features)


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
