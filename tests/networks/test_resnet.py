import pytest
import torch

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ResNet10, ResNet18


@pytest.mark.parametrize(
    ("family", "width", "millions"),
    [(ResNet10, 32, 1.23), (ResNet18, 32, 2.80), (ResNet10, 64, 4.90), (ResNet18, 64, 11.17)],
)
def test_published_parameter_counts(family, width, millions):
    network = family(3, 10, 32, width=width)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_are_the_classifier_of_the_features(norm, channels):
    network = ResNet10(channels, 7, 16, width=8, norm=norm).eval()
    images = torch.randn(2, channels, 16, 16)
    assert network.features(images).shape == (2, 64)
    torch.testing.assert_close(network(images), network.classifier(network.features(images)))


def test_every_group_after_the_first_halves_the_map():
    network = ResNet18(3, 10, 32, width=4)
    sizes = []
    for layer in network.features:
        layer.register_forward_hook(lambda *call: sizes.append(call[2].shape[-1]))
    network(torch.randn(1, 3, 32, 32).repeat(2, 1, 1, 1))
    assert sizes == [32, 32, 32, *[32] * 2, *[16] * 2, *[8] * 2, *[4] * 2, 1, 32]


def test_instance_norm_needs_more_than_one_pixel():
    assert ResNet10(3, 10, 9, width=4, norm="instance")(torch.randn(1, 3, 9, 9)).shape == (1, 10)
    with pytest.raises(ConfigError, match="at least 9"):
        ResNet10(3, 10, 8, norm="instance")
