import pytest
import torch
from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.networks import ConvNet, ResNet10
from pdd_lightning.networks.features import features_and_logits


@pytest.mark.parametrize("network", [ConvNet(3, 4, 8, depth=2, width=5), ResNet10(3, 4, 8, width=4)])
def test_features_are_what_the_classifier_sees(network):
    images = torch.rand(6, 3, 8, 8)
    features, logits = features_and_logits(network.eval(), images)
    torch.testing.assert_close(features, network.features(images))
    torch.testing.assert_close(logits, network(images))
    torch.testing.assert_close(network.classifier(features), logits)


def test_no_hook_is_left_behind():
    network = ConvNet(3, 4, 8, depth=2, width=5)
    features_and_logits(network, torch.rand(2, 3, 8, 8))
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_without_a_linear_layer_is_refused():
    with pytest.raises(ConfigError, match="Flatten has no linear layer"):
        features_and_logits(nn.Flatten(), torch.rand(2, 3, 8, 8))
