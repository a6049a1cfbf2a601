"""Network factories as data that can be stored, and rebuilt."""

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
from torch.nn.modules import module as registration

from pdd_lightning.errors import ConfigError, PDDError
from pdd_lightning.stored import MAX_NUMBERS, Json, Name, Stored, validate
from pdd_lightning.typing import NetworkFactory

TRUSTED = ("pdd_lightning.", "torchvision.")
"""Packages from which classes that files name may be imported."""
_MAX_MODULES = 4_000


def network_spec(factory: NetworkFactory) -> dict[str, Any]:
    """Return `class_path` and `init_args` of a network class, or of a `functools.partial` of one."""
    arguments: dict[str, Any] = {}
    maker: Any = factory
    while isinstance(maker, functools.partial):
        arguments = {**maker.keywords, **arguments}
        # jsonargparse passes the class as an argument of its own constructor function.
        maker = next((value for value in maker.args if isinstance(value, type)), maker.func)
    return {"class_path": f"{maker.__module__}.{maker.__qualname__}", "init_args": arguments}


def argument_names(kind: type) -> list[str]:
    """Return the names of the constructor's arguments, with those that it passes on to bases outside of libraries."""
    bases = [base for base in kind.__mro__ if not base.__module__.startswith(("lightning", "torch", "builtins"))]
    parameters = [each for base in bases if "__init__" in vars(base) for each in _parameters(base)]
    return list(dict.fromkeys(one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)))


def _parameters(kind: Any) -> list[inspect.Parameter]:
    return list(inspect.signature(kind.__init__).parameters.values())[1:]


class NetworkSpec(Stored):
    """Model of the result of `network_spec` as read from a file."""

    class_path: Name
    init_args: Json = Field(default={})


def factory_from_spec(spec: dict[str, Any], trust: bool = False) -> NetworkFactory:
    """Return the factory of a stored specification.

    Only classes of this package and of torchvision are imported, since the specification may come from an untrusted
    file.

    Args:
        spec: The specification.
        trust: Import classes from anywhere.

    Raises:
        ConfigError: The class is defined elsewhere, does not exist, or lacks an argument.
        DamagedFileError: The specification is invalid.
    """
    stored = validate(NetworkSpec, spec, "the stored network", "name one with --network")
    path, remedy = stored.class_path, "name one with --network"
    if not (trust or path.startswith(TRUSTED)):
        raise ConfigError(
            f"cannot use the stored network {path}: it is not part of this package or torchvision, and importing it"
            f" could run untrusted code; {remedy}, or give --trust if you trust the file"
        )
    try:
        module, _, attribute = path.rpartition(".")
        network = check_network_class(getattr(importlib.import_module(module), attribute))
        if not (trust or f"{network.__module__}.".startswith(TRUSTED)):
            raise TypeError(f"it is defined in {network.__module__}")
        inspect.signature(network).bind_partial(**stored.init_args)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"cannot use the stored network {path}: {error}; {remedy}") from error
    return functools.partial(network, **stored.init_args)


def check_network_class(value: Any) -> type[nn.Module]:
    """Refuse values that are not network classes, before they are called.

    Raises:
        ConfigError: It is not a subclass of `nn.Module`.
    """
    if isinstance(value, type) and issubclass(value, nn.Module):
        return value
    raise ConfigError("it is not a network class, which is a subclass of torch.nn.Module")


def check_size(factory: NetworkFactory, image_shape: Sequence[int], num_classes: int) -> None:
    """Refuse networks that cannot be built, or are excessively large, before memory is allocated for them.

    The network is built on the meta device; a class that does not support it is accepted.

    Args:
        factory: Builds the network.
        image_shape: Shape `(C, H, W)` of the images.
        num_classes: Number of classes.

    Raises:
        ConfigError: It cannot be built, or has too many parameters or modules.
    """
    count = {"parameters": 0, "modules": 0}

    def add(kind: str, number: int, limit: int) -> None:
        count[kind] += number
        if count[kind] > limit:
            raise ConfigError(f"the network has more than {limit} {kind}: lower its arguments, such as width and depth")

    def on_parameter(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.numel():
            raise ConfigError("the network has an empty parameter: raise its arguments, such as width")
        add("parameters", 0 if parameter is None else parameter.numel(), MAX_NUMBERS)

    hooks = [
        registration.register_module_parameter_registration_hook(on_parameter),
        registration.register_module_module_registration_hook(lambda *_: add("modules", 1, _MAX_MODULES)),
    ]
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown when the actual network is built
            factory(image_shape[0], num_classes, image_shape[1])
    except PDDError:
        raise
    except Exception as error:
        if "meta" not in str(error):
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            raise ConfigError(f"the network cannot be built ({reason}): correct its arguments") from error
    finally:
        for hook in hooks:
            hook.remove()
