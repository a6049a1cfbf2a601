"""Networks by name: what a network factory makes, as data that can be stored and built again."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from torch import nn

from pdd_lightning.errors import ConfigError
from pdd_lightning.typing import NetworkFactory

TRUSTED = ("pdd_lightning.", "torchvision.")


def network_spec(factory: NetworkFactory) -> dict[str, Any]:
    """Class path and init arguments of what a factory makes.

    Args:
        factory: A network class, or `functools.partial` of one with keyword arguments.

    Returns:
        `{"class_path": str, "init_args": dict}`.
    """
    arguments: dict[str, Any] = {}
    maker: Any = factory
    while isinstance(maker, functools.partial):
        arguments = {**maker.keywords, **arguments}
        # The command line's parser passes the class as an argument of its own constructor function.
        maker = next((value for value in maker.args if isinstance(value, type)), maker.func)
    return {"class_path": f"{maker.__module__}.{maker.__qualname__}", "init_args": arguments}


def factory_from_spec(spec: dict[str, Any]) -> NetworkFactory:
    """The factory of a stored specification.

    Only classes of this package and of torchvision are imported, since a specification may come from a file
    that somebody else wrote.

    Raises:
        ConfigError: The class lies elsewhere, does not exist, or lacks an argument.
    """
    path = spec["class_path"]
    module, _, name = path.rpartition(".")
    try:
        if not path.startswith(TRUSTED):
            raise ImportError("it is not part of this package or torchvision")
        network = getattr(importlib.import_module(module), name)
        if not (isinstance(network, type) and issubclass(network, nn.Module)):
            raise ImportError("it is not a network class")
        inspect.signature(network).bind_partial(**spec["init_args"])
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(f"cannot use the stored network {path}: {error}; name one with --network") from error
    return functools.partial(network, **spec["init_args"])
