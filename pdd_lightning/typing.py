"""Types shared by every part of the package."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

Params: TypeAlias = dict[str, Tensor]
"""Parameters of a network by name, in `named_parameters()` order."""

NetworkFactory: TypeAlias = Callable[[int, int, int], nn.Module]
"""`factory(in_channels, num_classes, image_size)` builds a freshly initialized network."""


@runtime_checkable
class OffersLossGradient(Protocol):
    """A network that may compute the gradient of its loss faster than automatic differentiation does."""

    def loss_gradient(
        self, params: Params, images: Tensor, labels: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, ...] | None:
        """Return the gradient of the cross-entropy by every parameter, or None to leave it to autograd.

        If gradients are enabled it can be differentiated once, in all arguments; otherwise it is a constant.

        Args:
            params: All parameters, in place of the network's own.
            images: `[N, C, H, W]`.
            labels: Classes `[N]`, all of them counting, or class probabilities `[N, num_classes]`.
            weights: Weight of each image `[N]`; the mean over images by default.
        """
