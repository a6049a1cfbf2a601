"""Instance norm, ReLU and 2x2 average pooling as one operation on a CPU, differentiable twice.

With y the map, M its area, mu and r its mean and the inverse of its standard deviation (per image and channel):

    x = (y - mu) r,   z = gamma x + beta,   p = pool(relu(z))

Backward, from the slope gp of p. gz is gp spread over its window (a quarter each) where z > 0, else 0:

    ggamma = sum gz x,   gbeta = sum gz,   gy = gamma r (gz - sum gz / M - x sum(gz x) / M)

Backward of the backward: with v, vgamma, vbeta the slopes of gy, ggamma, gbeta, and sums over a map

    G = sum gz,  X = sum gz x,  V = sum v,  W = sum v x,  K = sum v gz - (V G + W X) / M

the scalar v gy + vgamma ggamma + vbeta gbeta has these derivatives (tgamma sums over images):

    of gz:    q = gamma r (v - V / M - x W / M) + vgamma x + vbeta;  of gp: the sum of q over a window where z > 0, by 4
    of gamma: r K
    of x:     e = -gamma r (X v + W gz) / M + vgamma gz;   of r: gamma K
    of y:     r (e - sum e / M - x sum(e x) / M) - gamma K r^2 x / M

A constant added to y (the bias of the convolution before it) changes nothing. Every image is treated by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pdd_lightning.kernels.calls import NAMES, call, like, sums_dtype
from pdd_lightning.kernels.compiled import library
from pdd_lightning.kernels.order import require_last_derivative

SUMS = 5
"""Numbers that `adjoint` keeps of each map for `total`."""


class NormState(NamedTuple):
    """What of the forward pass the others need.

    Attributes:
        mean: Mean of each map `[N, C]`.
        rstd: Inverse standard deviation of each map `[N, C]`.
        gamma: Scale `[C]`.
        beta: Shift `[C]`.
    """

    mean: Tensor
    rstd: Tensor
    gamma: Tensor
    beta: Tensor


def computed_in(images: Tensor) -> torch.dtype:
    """Return the type that images are computed in: under autocast its type for float32, else their own."""
    autocast = torch.is_autocast_enabled("cpu") and images.dtype == torch.float32
    return torch.get_autocast_dtype("cpu") if autocast else images.dtype


def can_fuse(images: Tensor) -> bool:
    """Return whether the kernels work on these images: on a CPU, in a known type, and outside of torch.func."""
    if images.device.type != "cpu" or computed_in(images) not in NAMES or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active() and library() is not None


def norm_relu_pool(y: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """Return the pooled map `[N, C, H // 2, W // 2]`, in y's type; differentiable twice.

    Args:
        y: Map `[N, C, H, W]`, float32, float64 or bfloat16, on the CPU; computed in float32 at least.
        gamma: Scale of each channel `[C]`.
        beta: Shift of each channel `[C]`.
        eps: Added to the variance.
    """
    pooled: Tensor = _NormReluPool.apply(y, gamma, beta, eps)
    return pooled


def forward(y: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, NormState]:
    """Return the pooled map and the state."""
    y, gamma, beta = _map(y), _sums_type(gamma, y), _sums_type(beta, y)
    require_shapes(y.shape, y.device, gamma, beta)
    count, channels, height, width = y.shape
    pooled = like(y, count, channels, height // 2, width // 2)
    mean, rstd = gamma.new_empty(count, channels), gamma.new_empty(count, channels)
    call("forward", y, _sizes(y), y, gamma, beta, float(eps), pooled, mean, rstd)
    return pooled, NormState(mean, rstd, gamma, beta)


def backward(gp: Tensor, y: Tensor, state: NormState) -> tuple[Tensor, Tensor, Tensor]:
    """Return the slopes of y, of gamma and of beta."""
    y = _map(y)
    require_shapes(y.shape, y.device, state.gamma, state.beta, gp)
    gy, ggamma, gbeta = torch.empty_like(y), torch.empty_like(state.mean), torch.empty_like(state.mean)
    call("backward", y, _sizes(y), _map(gp), y, *state, gy, ggamma, gbeta)
    return gy, ggamma.sum(0), gbeta.sum(0)


class Adjoint(NamedTuple):
    """First half of the backward of the backward.

    Attributes:
        vp: Derivative of gp.
        sums: The five sums of each map `[N, 5, C]`.
        tgamma: Derivative of gamma, from each image `[N, C]`.
    """

    vp: Tensor
    sums: Tensor
    tgamma: Tensor


def adjoint(gp: Tensor, y: Tensor, v: Tensor, vgamma: Tensor, vbeta: Tensor, state: NormState) -> Adjoint:
    """Return what follows for gp and gamma from the slopes v, vgamma and vbeta of what `backward` returned."""
    y, gp, v = _map(y), _map(gp), _map(v)
    require_shapes(y.shape, y.device, vgamma, vbeta, gp, v)
    vp, tgamma = torch.empty_like(gp), torch.empty_like(state.mean)
    sums = state.mean.new_empty(len(y), SUMS, y.shape[1])
    call("adjoint", y, _sizes(y), gp, y, v, *state, _sums_type(vgamma, y), _sums_type(vbeta, y), vp, sums, tgamma)
    return Adjoint(vp, sums, tgamma)


def total(
    gp: Tensor, y: Tensor, v: Tensor, tp: Tensor | None, vgamma: Tensor, half: Adjoint, state: NormState
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives of y, gamma and beta: the rest of `adjoint`, and `backward` of the slope tp of p."""
    y, gp, v = _map(y), _map(gp), _map(v)
    ty, tgamma, tbeta = torch.empty_like(y), half.tgamma.clone(), torch.empty_like(state.mean)
    later = None if tp is None else _map(tp)
    call("total", y, _sizes(y), gp, y, v, later, *state, _sums_type(vgamma, y), half.sums, ty, tgamma, tbeta)
    return ty, tgamma.sum(0), tbeta.sum(0)


class _NormReluPool(torch.autograd.Function):
    """The operation, in terms of the functions above."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
        pooled, state = forward(y, gamma, beta, eps)
        ctx.save_for_backward(y, gamma, beta, state.mean, state.rstd)
        return pooled

    @staticmethod
    def backward(ctx: Any, gp: Tensor) -> tuple[Tensor | None, ...]:
        return (*_Backward.apply(gp, *ctx.saved_tensors), None)


class _Backward(torch.autograd.Function):
    """Its backward; mean and rstd are functions of y, whose part in the derivative is that of y."""

    @staticmethod
    def forward(
        ctx: Any, gp: Tensor, y: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor
    ) -> tuple[Tensor, ...]:
        state = NormState(mean, rstd, _sums_type(gamma, y), _sums_type(beta, y))
        ctx.save_for_backward(gp, y, *state)
        gy, ggamma, gbeta = backward(gp, y, state)
        return gy, ggamma.to(gamma), gbeta.to(beta)

    @staticmethod
    def backward(ctx: Any, v: Tensor, vgamma: Tensor, vbeta: Tensor) -> tuple[Tensor | None, ...]:
        require_last_derivative()
        gp, y, *rest = ctx.saved_tensors
        state = NormState(*rest)
        half = adjoint(gp, y, v, vgamma, vbeta, state)
        ty, tgamma, _ = total(gp, y, v, None, vgamma, half, state)
        return half.vp, ty, tgamma.to(vgamma), None, None, None


def require_shapes(
    size: Sequence[int],
    device: torch.device,
    gamma: Tensor,
    beta: Tensor,
    pooled: Tensor | None = None,
    slope: Tensor | None = None,
) -> None:
    """Make sure that everything fits a map: the kernels would read what is not there.

    Args:
        size: That of the map, `[N, C, H, W]`.
        device: Its device.
        gamma: Of each channel `[C]`.
        beta: Of each channel `[C]`.
        pooled: As the pooled map `[N, C, H // 2, W // 2]`.
        slope: As the map.

    Raises:
        RuntimeError: Something is of another shape, or elsewhere.
    """
    count, channels, height, width = size
    pooled_shape = (count, channels, height // 2, width // 2)
    for tensor, shape in ((gamma, (channels,)), (beta, (channels,)), (pooled, pooled_shape), (slope, tuple(size))):
        if tensor is not None and (tuple(tensor.shape) != shape or tensor.device != device):
            found = f"{list(tensor.shape)} on {tensor.device}"
            raise RuntimeError(f"with a map {list(size)} on {device} goes {list(shape)} there, got {found}")


def _map(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous(memory_format=torch.channels_last)


def _sums_type(tensor: Tensor, y: Tensor) -> Tensor:
    """The tensor in the type that sums over y are computed in."""
    return tensor.detach().to(sums_dtype(y.dtype)).contiguous()


def _sizes(y: Tensor) -> tuple[int, ...]:
    count, channels, height, width = y.shape
    return count, height, width, channels
