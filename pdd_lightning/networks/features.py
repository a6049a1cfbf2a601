"""Classifiers that are features and a linear layer, and the features of any network."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pdd_lightning.errors import ConfigError


class Classifier(nn.Module):
    """Base of the networks of this package: features and a linear classifier.

    Subclasses take the number of image channels, the number of classes and the side of the (square) images in pixels as
    `in_channels`, `num_classes` and `image_size`.

    Attributes:
        features: Images `[N, C, H, W]` to features `[N, F]`.
        classifier: Features to logits `[N, num_classes]`.
    """

    features: nn.Module
    classifier: nn.Linear

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, num_classes]` of images `[N, C, H, W]`."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class Outputs(NamedTuple):
    """Features `[N, F]` and logits `[N, classes]`."""

    features: Tensor
    logits: Tensor


def features_and_logits(network: nn.Module, images: Tensor) -> Outputs:
    """Run a network and return the input of its last linear layer with the logits.

    Args:
        network: Any network that ends with a linear layer; its mode stays the same.
        images: `[N, C, H, W]` in model space.

    Raises:
        ConfigError: The network has no linear layer.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"{type(network).__name__} has no linear layer whose input could be the features")
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    return Outputs(seen[-1].flatten(1), logits)
