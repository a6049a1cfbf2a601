"""Gradient matching class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from pdd_lightning.typing import OffersLossGradient, Params

Distance: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Distance between the gradients on synthetic and on real images, each one tensor per parameter."""


class ClassSides(NamedTuple):
    """The images of one class whose gradients are compared.

    Attributes:
        label: The class, a scalar int64.
        real: Real images `[B, C, H, W]`.
        weights: Weight of each real image `[B]`, of sum 1.
        frozen: Constant synthetic images `[f, C, H, W]`, f >= 0.
        new: Learned synthetic images `[n, C, H, W]`.
    """

    label: Tensor
    real: Tensor
    weights: Tensor
    frozen: Tensor
    new: Tensor


def class_distance(network: nn.Module, params: Params, sides: ClassSides, distance: Distance) -> Tensor:
    """Return the distance between the cross-entropy gradients on the synthetic and on the real images of a class.

    The gradients on frozen and new images are computed separately, so that only the latter is differentiated again.
    This is exact for networks that treat each image independently, as those without batch norms in training mode do;
    others need all synthetic images among the new ones. The network's buffers are not changed.

    Args:
        network: The network.
        params: Its parameters; constants.
        sides: The images of one class.
        distance: Compares the gradients.

    Returns:
        A scalar, differentiable in `sides.new`.
    """
    frozen, new = sides.frozen, sides.new
    share = 1 / (len(frozen) + len(new))
    real = _gradient(network, params, sides.real, sides.label, sides.weights, is_constant=True)
    weights = sides.weights.new_full((len(frozen) + len(new),), share)
    synthetic = _gradient(network, params, new, sides.label, weights[: len(new)], is_constant=False)
    if len(frozen):
        constant = _gradient(network, params, frozen, sides.label, weights[len(new) :], is_constant=True)
        synthetic = tuple(s + c for s, c in zip(synthetic, constant, strict=True))
    return distance(synthetic, real)


def _gradient(
    network: nn.Module, params: Params, images: Tensor, label: Tensor, weights: Tensor, is_constant: bool
) -> tuple[Tensor, ...]:
    """Return the gradient of the weighted cross-entropy, differentiable in the images unless it is constant."""
    if isinstance(network, OffersLossGradient):
        with torch.no_grad() if is_constant else nullcontext():
            gradient = network.loss_gradient(params, images, label.expand(len(images)), weights)
        if gradient is not None:
            return gradient
    if not is_constant:
        gradients: Params = grad(lambda values: _loss(network, values, images, label, weights))(params)
        return tuple(gradients.values())
    # Without a graph of the backward pass, it takes half the time.
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    return torch.autograd.grad(_loss(network, leaves, images.detach(), label, weights), tuple(leaves.values()))


def _loss(network: nn.Module, params: Params, images: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    logits = functional_call(network, {**buffers, **params}, (images,))
    losses: Tensor = F.cross_entropy(logits, label.expand(len(images)), reduction="none")
    return (losses * weights).sum()
