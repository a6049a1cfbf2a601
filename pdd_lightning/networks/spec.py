"""Networks by name: what a network factory makes, as data that can be stored and built again."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules import module as hooked

from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.stored import MAX_NUMBERS, Json, Name, Stored, validate
from pdd_lightning.typing import NetworkFactory

TRUSTED = ("pdd_lightning.", "torchvision.")
"""Where the classes may lie that files name."""
_MOST_PARTS = 4_000
"""Modules of a network."""


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


class NetworkSpec(Stored):
    """What `network_spec` gives, as it may come back from a file."""

    class_path: Name
    init_args: Json = Field(default={})


def factory_from_spec(spec: dict[str, Any], trust: bool = False) -> NetworkFactory:
    """The factory of a stored specification.

    Only classes of this package and of torchvision are imported, since a specification may come from a file
    that somebody else wrote.

    Args:
        spec: The specification.
        trust: Import classes from anywhere.

    Raises:
        ConfigError: The class lies elsewhere, does not exist, or lacks an argument.
        DamagedFileError: It is no specification.
    """
    stored = validate(NetworkSpec, spec, "the stored network", "name one with --network")
    path, name = stored.class_path, "name one with --network"
    if not (trust or path.startswith(TRUSTED)):
        raise ConfigError(
            f"cannot use the stored network {path}: it is not part of this package or torchvision, so that importing it"
            f" could run code of a stranger; {name}, or say --trust if you know where the file comes from"
        )
    try:
        module, _, attribute = path.rpartition(".")
        network = check_network_class(getattr(importlib.import_module(module), attribute))
        if not (trust or f"{network.__module__}.".startswith(TRUSTED)):
            raise TypeError(f"it is defined in {network.__module__}")
        inspect.signature(network).bind_partial(**stored.init_args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot use the stored network {path}: {error}; {name}") from error
    return functools.partial(network, **stored.init_args)


def check_network_class(value: Any) -> type[nn.Module]:
    """Refuses what is no class of networks, before it is called.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        return value
    raise ConfigError("it is not a network class, which is a subclass of torch.nn.Module")


def check_size(factory: NetworkFactory, image_shape: Sequence[int], num_classes: int) -> None:
    """Refuses networks that cannot be made, or are too large to be meant, before they take memory.

    The network is made without its numbers, on the device `meta`; a class that does not work there is let pass.

    Args:
        factory: Makes the network.
        image_shape: `(C, H, W)` of the images.
        num_classes: Number of classes.

    Raises:
        ConfigError: It cannot be made, or has more parameters, or parts, than are allowed.
    """
    count = {"parameters": 0, "parts": 0}

    def add(kind: str, number: int, most: int) -> None:
        count[kind] += number
        if count[kind] > most:
            raise ConfigError(f"the network has more than {most} {kind}: lower its arguments, such as width and depth")

    def on_parameter(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.numel():
            raise ConfigError("the network has a parameter without numbers: raise its arguments, such as width")
        add("parameters", 0 if parameter is None else parameter.numel(), MAX_NUMBERS)

    hooks = [
        hooked.register_module_parameter_registration_hook(on_parameter),
        hooked.register_module_module_registration_hook(lambda *_: add("parts", 1, _MOST_PARTS)),
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is said when the network is made for real
            factory(image_shape[0], num_classes, image_shape[1])
    except PDDError:
        raise
    except Exception as error:
        if "meta" not in str(error):
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            raise ConfigError(f"the network cannot be made ({reason}): correct its arguments") from error
    finally:
        for hook in hooks:
            hook.remove()
