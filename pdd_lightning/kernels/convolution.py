"""Convolutions of stride 1 by their three products, each as one call; differentiable twice without detours.

Those of 3x3 are computed by Winograd's algorithm where that is faster, see `winograd.py`; others by torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import winograd
from pdd_lightning.kernels.order import require_last_derivative

FEW = 36
"""Entries of a kernel per output channel, four channels of 3x3, up to which moving a map costs more than computing."""


def convolution(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the convolution without bias; the derivative of its derivative takes as long as it must.

    Torch's own second derivative by the kernel is a convolution with a kernel as large as the image, which takes twice
    the time.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`, of the same type.
        padding: Rows and columns of zeros on each side.
    """
    result: Tensor = _Convolution.apply(x, weight, padding)
    return result


def product(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the convolution without a history."""
    if winograd.suits(x, weight, padding):
        return winograd.convolution(x, weight, padding)
    return F.conv2d(x, weight, padding=padding)


def input_slope(slope: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the slope of the images from that of the result."""
    if winograd.suits(x, weight, padding):
        return winograd.input_slope(slope, weight, padding)
    if weight[0].numel() > FEW:
        return _products(slope, x, weight, padding, [True, False, False])[0]
    # To images of few channels the convolution has no fast form. One of 1x1 gives each pixel's part in the slopes of
    # its neighbours, which are then added up.
    count, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    parts = F.conv2d(slope, weight.flatten(1).t()[:, :, None, None]).unflatten(1, (channels, rows * columns))
    parts = parts.to(torch.promote_types(parts.dtype, torch.float32))  # sums of bfloat16 would lose too much
    shape = (count, channels, height + 2 * padding[0], width + 2 * padding[1])
    padded = torch.zeros(shape, dtype=parts.dtype, device=x.device).contiguous(memory_format=torch.channels_last)
    for number in range(rows * columns):
        down, right = divmod(number, columns)
        padded[:, :, down : down + slope.shape[2], right : right + slope.shape[3]] += parts[:, :, number]
    return padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width].to(slope.dtype)


def weight_slope(slope: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the slope of the kernel from that of the result."""
    if winograd.suits(x, weight, padding):
        return winograd.weight_slope(slope, x, padding)
    return _products(slope, x, weight, padding, [False, True, False])[1]


def _products(slope: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], mask: list[bool]) -> list[Tensor]:
    products: list[Tensor] = torch.ops.aten.convolution_backward(
        slope, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, mask
    )
    return products


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
        """The convolution."""
        ctx.save_for_backward(x, weight)
        ctx.padding = padding
        return product(x, weight, padding)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of images and kernel, differentiable."""
        x, weight = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:2])
        return (*_Backward.apply(slope, x, weight, ctx.padding, wanted), None)


class _Backward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, slope: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], wanted: list[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Slopes of images and kernel, where they are wanted."""
        ctx.save_for_backward(slope, x, weight)
        ctx.padding = padding
        ctx.set_materialize_grads(False)
        if winograd.suits(x, weight, padding):
            return (
                winograd.input_slope(slope, weight, padding) if wanted[0] else None,
                winograd.weight_slope(slope, x, padding) if wanted[1] else None,
            )
        of_x, of_weight, _ = _products(slope, x, weight, padding, [*wanted, False])
        return of_x, of_weight

    @staticmethod
    def backward(ctx: Any, v_x: Tensor | None, v_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """Derivatives of the slope, the images and the kernel from those of the slopes."""
        require_last_derivative()
        slope, x, weight = ctx.saved_tensors
        of_slope = of_x = of_weight = None
        if v_x is not None:
            of_slope = product(v_x, weight, ctx.padding)
            if ctx.needs_input_grad[2]:
                of_weight = weight_slope(slope, v_x, weight, ctx.padding)
        if v_weight is not None:
            part = product(x, v_weight, ctx.padding)
            of_slope = part if of_slope is None else of_slope.add_(part)
            if ctx.needs_input_grad[1]:
                of_x = input_slope(slope, x, v_weight, ctx.padding)
        return of_slope, of_x, of_weight, None, None
