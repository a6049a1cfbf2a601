"""Parameters of a network as one flat vector and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pdd_lightning import endings
from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.memory import total_memory
from pdd_lightning.randomness import seeded
from pdd_lightning.typing import NetworkFactory, Params


def check_network(factory: NetworkFactory, in_channels: int, num_classes: int, image_size: int) -> None:
    """Refuses a kind of network that cannot be made for the images, or not in this machine's memory.

    Raises:
        ConfigError: It cannot; the message says why.
    """
    try:
        sizes = _sizes(factory, in_channels, num_classes, image_size)
    except PDDError:
        raise
    except Exception as error:  # of many types
        reason = "too large for the memory" if endings.lacks_memory(error) else str(error).strip().partition("\n")[0]
        raise ConfigError(f"the network cannot be made ({reason}): correct its arguments") from error
    memory = total_memory(torch.device("cpu"))
    if 0 in sizes or (memory is not None and 4 * sum(sizes) > memory):
        raise ConfigError(
            f"the network would have {sum(sizes):.3g} parameters, in layers of {min(sizes)} to {max(sizes):.3g}: choose"
            " another width or depth"
        )


def _sizes(factory: NetworkFactory, *facts: int) -> list[int]:
    """Number of parameters of each layer of a network, which is made without memory where it can be."""
    with warnings.catch_warnings(), seeded(0, "trial"):
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                network = factory(*facts)
        except (RuntimeError, NotImplementedError):  # not every network can be made so
            network = factory(*facts)
        return [parameter.numel() for parameter in network.parameters()]


def flatten(params: Mapping[str, Tensor]) -> Tensor:
    """Concatenate parameters, in their order, into one vector `[P]`; differentiable.

    Args:
        params: Parameters by name, for instance `dict(network.named_parameters())`.
    """
    return torch.cat([parameter.reshape(-1) for parameter in params.values()])


def unflatten(vector: Tensor, like: Mapping[str, Tensor]) -> Params:
    """Cut a vector `[P]` into parameters with the names and shapes of `like`; differentiable.

    The results are views of `vector`, in its dtype and on its device.

    Args:
        vector: All parameters one after another `[P]`.
        like: Parameters that give the names, the shapes and the order.

    Raises:
        ConfigError: If the vector has another number of elements than `like`.
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
    """Sets all parameters of a network from a vector `[P]`.

    Raises:
        ConfigError: The vector does not fit, see `unflatten`.
    """
    params = dict(network.named_parameters())
    with torch.no_grad():
        for name, value in unflatten(vector, params).items():
            params[name].copy_(value)
