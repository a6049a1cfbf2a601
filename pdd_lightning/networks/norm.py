"""Normalisation layers by name."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

from pdd_lightning.errors import ConfigError

Norm: TypeAlias = Literal["instance", "batch", "layer", "group", "none"]
"""Name of a normalisation layer."""

GROUPS = 4
"""Number of groups of the `group` norm."""


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """Return the normalisation named `norm` as a list of no or one layer.

    All but `batch` treat each sample on its own and are group norms with a learned scale and shift per
    channel: `instance` with one channel per group, `layer` with one group, `group` with four groups.

    Args:
        norm: One of `instance`, `batch`, `layer`, `group`, `none`.
        channels: Number of channels to normalise.

    Raises:
        ConfigError: If the name is unknown, or `group` does not divide the channels.
    """
    if norm == "none":
        return []
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    groups = {"instance": channels, "layer": 1, "group": GROUPS}.get(norm)
    if groups is None:
        raise ConfigError(f"unknown norm {norm!r}; choose instance, batch, layer, group or none")
    if channels % groups:
        raise ConfigError(f"norm 'group' needs a number of channels divisible by {GROUPS}, got {channels}")
    return [nn.GroupNorm(groups, channels)]


def replace_batch_norms(network: nn.Module, norm: Norm) -> None:
    """Puts the normalisation named `norm` in the place of every batch norm of a network.

    Raises:
        ConfigError: See `norm_layers`.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Sequential(*norm_layers(norm, module.num_features)))
