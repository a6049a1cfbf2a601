"""Gradients of sharpness-aware training, which prefers flat regions of the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-12


def sharpen_gradients(network: nn.Module, images: Tensor, targets: Tensor, rho: float, alpha: float) -> None:
    """Replaces the gradients `g` that `network` holds for a batch by sharpness-aware ones; weights stay as they are.

    The weights `w` climb to `w + rho * w^2 g / ||w g||` (adaptive ascent: relative to the size of each weight, so
    that rescaled layers climb alike), where the batch has the gradient `g'`. The result is
    `g' - alpha * (g - <g, g'> / ||g'||^2 * g')`: the part of `g` at right angles to `g'` is subtracted, which
    lowers the gap between the loss on the climb and the loss here. Norms and products are over all weights.

    Buffers (running statistics of batch norm) end as after the first pass. Costs one more forward and backward pass.

    Args:
        network: Network whose parameters hold the gradients of the mean cross-entropy on the batch.
        images: The batch, augmented `[N, C, H, W]`.
        targets: Classes `[N]`, or class probabilities `[N, classes]`.
        rho: Radius of the ascent.
        alpha: Weight of the gap; 0 is adaptive sharpness-aware minimisation alone.

    Reference:
        Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training (ICLR 2022), algorithm 1.
        Kwon et al., ASAM: Adaptive Sharpness-Aware Minimization (ICML 2021), equation 7, for the adaptive ascent.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    weights = [parameter.detach().clone() for parameter in parameters]
    buffers = [buffer.clone() for buffer in network.buffers()]
    first = _take_gradients(parameters)
    with torch.no_grad():
        scale = rho / (_norm([weight * gradient for weight, gradient in zip(weights, first, strict=True)]) + _EPS)
        for parameter, weight, gradient in zip(parameters, weights, first, strict=True):
            parameter.add_(weight.square() * gradient * scale)
    F.cross_entropy(network(images), targets).backward()
    second = _take_gradients(parameters)
    with torch.no_grad():
        share = _dot(first, second) / (_dot(second, second) + _EPS)
        for parameter, weight, here, there in zip(parameters, weights, first, second, strict=True):
            parameter.copy_(weight)
            parameter.grad = there - alpha * (here - share * there)
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)


def _take_gradients(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the parameters, which forget them."""
    gradients = []
    for parameter in parameters:
        gradients.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        parameter.grad = None
    return gradients


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    return torch.stack([(a * b).sum() for a, b in zip(left, right, strict=True)]).sum()


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return _dot(tensors, tensors).sqrt()
