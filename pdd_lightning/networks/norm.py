"""Normalization layers by name, and the statistics of batch norms."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pdd_lightning.errors import ConfigError

Norm: TypeAlias = Literal["instance", "batch", "layer", "group", "none"]
"""Name of a normalization layer."""

GROUPS = 4

STATISTICS_PER_CLASS = 16
"""Number of real images per class from which matching methods take batch norm statistics."""


def norm_layers(norm: Norm, channels: int) -> list[nn.Module]:
    """Return the normalization named `norm` as a list of at most one layer.

    All but `batch` treat each sample independently and are group norms with a learned scale and shift per
    channel: `instance` with one channel per group, `layer` with one group, `group` with four groups.

    Raises:
        ConfigError: The name is unknown, or `group` does not divide the channels.
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
    """Replace every batch norm of a network by the normalization named `norm`.

    Raises:
        ConfigError: See `norm_layers`.
    """
    found = {name: module for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for name, module in found.items():
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, nn.Sequential(*norm_layers(norm, module.num_features)))


def has_batch_norm(network: nn.Module) -> bool:
    """Return whether a network has batch norms, whose outputs depend on the whole batch in training mode."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def fix_statistics(network: nn.Module, images: Tensor) -> None:
    """Put a network in evaluation mode, with the statistics of `images` in its batch norms.

    Afterwards each image is treated independently, also in a batch of one class, whose statistics differ from those of
    the other classes.

    Args:
        network: The network; without batch norms only its mode changes.
        images: Batch of all classes `[N, C, H, W]`.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average, here over one batch
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
