"""Conversion between the parameters of a network and a flat vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import Params


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Concatenate parameters in their order to a vector `[P]`; differentiable."""
    return torch.cat([parameter.reshape(-1) for parameter in params.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    """Split a vector `[P]` into parameters with the names and shapes of `like`; differentiable.

    The results are views of `vector`.

    Raises:
        ConfigError: The vector has another number of elements than `like`.
    """
    expected = sum(parameter.numel() for parameter in like.values())
    if vector.shape != (expected,):
        raise ConfigError(
            f"a vector of shape {tuple(vector.shape)} cannot fill a network of {expected} parameters; "
            "use the network, the number of classes and the image size that the vector was recorded with"
        )
    pieces = torch.split(vector, [parameter.numel() for parameter in like.values()])
    return {name: piece.view(parameter.shape) for (name, parameter), piece in zip(like.items(), pieces, strict=True)}


def load_flat(network: nn.Module, vector: Tensor) -> None:
    """Set all parameters of a network from a vector `[P]`.

    Raises:
        ConfigError: The vector does not fit, see `unflatten`.
    """
    params = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in unflatten(vector, params).items():
            params[name].copy_(value)
