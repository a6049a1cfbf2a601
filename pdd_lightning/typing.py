"""Types shared by every part of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

Params: TypeAlias = dict[str, Tensor]
"""Parameters of a network by name, in `named_parameters()` order."""

NetworkFactory: TypeAlias = Callable[[int, int, int], nn.Module]
"""`factory(in_channels, num_classes, image_size)` builds a freshly initialised network."""
