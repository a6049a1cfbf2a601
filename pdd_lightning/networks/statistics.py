"""Batch norms whose statistics are those of one batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

STATISTICS_PER_CLASS = 16
"""Real images of each class that matching methods take the statistics from."""


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network has batch norms, whose outputs depend on the whole batch in training mode."""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def fix_statistics(network: nn.Module, images: Tensor) -> None:
    """Puts a network in evaluation mode with the statistics of `images` in its batch norms.

    Afterwards each image is treated by itself, also if it comes in a batch of one class, whose own statistics
    would tell nothing of the other classes.

    Args:
        network: The network; without batch norms only its mode changes.
        images: Batch over all classes `[N, C, H, W]`.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    network.eval()
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average, here over one batch
        norm.train()
    with torch.no_grad():
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
