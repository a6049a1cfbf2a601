"""Sharpness-aware gradients, which lead to flat regions of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-12


def sharpen_gradients(network: nn.Module, images: Tensor, targets: Tensor, rho: float, alpha: float) -> None:
    """Replace the gradients `g` of a network for a batch by sharpness-aware ones.

    At the weights `w + rho * w^2 g / ||w g||` (adaptive ascent, which is invariant to rescaled layers) the batch has
    the gradient `g'`. The result is `g' - alpha * (g - <g, g'> / ||g'||^2 * g')`: subtracting the component of `g`
    orthogonal to `g'` lowers the gap between the perturbed loss and the loss. Norms and products are over all weights.

    Weights and buffers (running statistics of batch norm) are restored. Costs one more forward and backward pass.

    Args:
        network: Network whose parameters have the gradients of the mean cross-entropy on the batch.
        images: The batch, augmented `[N, C, H, W]`.
        targets: Classes `[N]`, or class probabilities `[N, classes]`.
        rho: Radius of the ascent.
        alpha: Weight of the gap; 0 is adaptive sharpness-aware minimization.

    Reference:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training (ICLR 2022), algorithm 1.
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization (ICML 2021), equation 7, for the adaptive ascent.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    weights = [parameter.detach().clone() for parameter in parameters]
    buffers = [buffer.clone() for buffer in network.buffers()]
    first = _take_gradients(parameters)
    with torch.no_grad():
        scaled = [weight * gradient for weight, gradient in zip(weights, first, strict=True)]
        step = rho / (_dot(scaled, scaled).sqrt() + _EPS)
        for parameter, weight, gradient in zip(parameters, weights, first, strict=True):
            parameter.add_(weight.square() * gradient * step)
    # Not `torch.autograd.grad`, whose gradients may have another memory layout, and so another order of sums.
    F.cross_entropy(network(images), targets).backward()
    second = _take_gradients(parameters)
    with torch.no_grad():
        share = _dot(first, second) / (_dot(second, second) + _EPS)
        for parameter, weight, gradient, perturbed in zip(parameters, weights, first, second, strict=True):
            parameter.copy_(weight)
            parameter.grad = perturbed - alpha * (gradient - share * perturbed)
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)


def _take_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradients of the parameters and reset them to None."""
    gradients = []
    for parameter in parameters:
        gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return gradients


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()
