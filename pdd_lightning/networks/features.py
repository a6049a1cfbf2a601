"""Features of images in a network: what its classifier sees."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pdd_lightning.errors import ConfigError


class Outputs(NamedTuple):
    """Features `[N, F]` and logits `[N, classes]`."""

    features: Tensor
    logits: Tensor


def features_and_logits(network: nn.Module, images: Tensor) -> Outputs:
    """Runs a network and keeps the input of its last linear layer.

    Args:
        network: Any network that ends with a linear layer, in the mode in which it is to be used.
        images: `[N, C, H, W]` in model space.

    Raises:
        ConfigError: The network has no linear layer.
    """
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"{type(network).__name__} has no linear layer, whose input would be the features")
    seen: list[Tensor] = []
    hook = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits = network(images)
    finally:
        hook.remove()
    return Outputs(seen[-1].flatten(1), logits)
