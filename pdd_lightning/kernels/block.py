"""The passes of a block of convolution, instance norm, ReLU and 2x2 average pooling on a CPU.

There are a forward, a backward and a double backward pass, the last in two halves; `pdd_lightning.kernels.chain`
combines those of several blocks. `MapBlock` stores the convolution's map in memory. `ImageBlock` is for images of few
channels: the first block of a ConvNet has the largest map, with few operations per number. It is kept in the
processor's cache rather than in memory, and recomputed in each pass, image by image.

With y the map, M its area, mu and r its mean and its inverse standard deviation (per image and channel):

    x = (y - mu) r,   z = gamma x + beta,   p = pool(relu(z))

Backward, from the gradient gp of p, with gz a quarter of gp in its window where z > 0, else 0:

    ggamma = sum gz x,   gbeta = sum gz,   gy = gamma r (gz - sum gz / M - x sum(gz x) / M)

Double backward: with v, vgamma, vbeta the gradients of gy, ggamma, gbeta, and sums over a map

    G = sum gz,  X = sum gz x,  V = sum v,  W = sum v x,  K = sum v gz - (V G + W X) / M

the scalar v gy + vgamma ggamma + vbeta gbeta has these derivatives (tgamma sums over images):

    of gz:    q = gamma r (v - V / M - x W / M) + vgamma x + vbeta;  of gp: the sum of q over a window where z > 0, by 4
    of gamma: r K
    of x:     e = -gamma r (X v + W gz) / M + vgamma gz;   of r: gamma K
    of y:     r (e - sum e / M - x sum(e x) / M) - gamma K r^2 x / M

A constant added to y (the bias of the convolution) has no effect. Images are independent. All maps are channels-last,
and all tensors have the same dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import convolution as conv
from pdd_lightning.kernels.compiled import call, empty_maps, query

_MAX_MAP_AREA = 128 * 128
"""Area of a map up to which `ImageBlock` was measured to be faster."""
_NUM_SUMS = 5
"""Sums per map that the first half of the double backward pass stores for the second."""


class Wanted(NamedTuple):
    """Which derivatives are computed besides those of scale and shift; others are empty tensors.

    Attributes:
        x: Those of the input of a block or chain.
        weight: Those of the convolution kernels.
    """

    x: bool
    weight: bool


def suits_image_block(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Return whether `ImageBlock` supports a block, and is faster than `MapBlock`; see there."""
    height, width = conv.map_size(x, weight, padding)
    supported = weight[0].numel() <= conv.FEW and len(weight) % conv.LANES == 0
    return supported and min(height, width) >= 2 and height * width <= _MAX_MAP_AREA


class MapBlock:
    """A block with its map in memory.

    Args:
        x: Input `[N, C, H, W]`.
        params: Kernel `[K, C, h, w]`, scale `[K]` and shift `[K]`.
        padding: Rows and columns of zeros on each side.
        y: Map `[N, K, H', W']`; computed unless given.
        moments: Mean and inverse standard deviation of each map `[2, N, K]`, if `forward` was called before.

    Attributes:
        y: The map.
        pooled: Shape of the pooled map, `(N, K, H' // 2, W' // 2)`.
        moments: See above.
        gp: Gradient of the pooled map, set by `backward`.
    """

    gp: Tensor
    _half: tuple[Tensor | None, ...]

    def __init__(
        self,
        x: Tensor,
        params: Sequence[Tensor],
        padding: tuple[int, int],
        y: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> None:
        self._x, self._padding = x, padding
        self._weight, *scales = params
        self.y = conv.convolution(x, self._weight, padding) if y is None else y
        count, channels, height, width = self.y.shape
        self._sizes = (count, height, width, channels)
        self.pooled = (count, channels, height // 2, width // 2)
        self.moments = x.new_empty(2, count, channels) if moments is None else moments
        self._norm = (*self.moments, *scales)

    def forward(self, eps: float) -> Tensor:
        """Return the pooled map; `eps` is added to the variance."""
        mean, rstd, gamma, beta = self._norm
        pooled = empty_maps(self.y, *self.pooled)
        self._call("forward", self.y, gamma, beta, float(eps), pooled, mean, rstd)
        return pooled

    def backward(self, gp: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the gradients of x, kernel, scale and shift from that of the pooled map."""
        self.gp = gp
        gy, ggamma, gbeta = self._backward()
        of_x, of_weight = self._gradients(gy, self._x, self._weight, wanted)
        return [of_x, of_weight, ggamma.sum(0), gbeta.sum(0)]

    def double_backward_gradient(self, v: Tensor | None, v_params: Sequence[Tensor], wanted: Wanted) -> Tensor:
        """Return the derivative of the pooled map's gradient, the first half of the double backward pass.

        Args:
            v: Derivative of the gradient of x, if that was computed.
            v_params: Derivatives of the gradients of kernel, scale and shift.
            wanted: Argument of the subsequent call of `double_backward_inputs`.
        """
        v_weight, v_gamma, v_beta = v_params
        gy, _, _ = self._backward()
        vy = conv.convolution(self._x, v_weight, self._padding)
        if v is not None:
            vy += conv.convolution(v, self._weight, self._padding)
        of_x, _ = self._gradients(gy, self._x, v_weight, Wanted(wanted.x, False))
        of_weight = None if v is None else self._gradients(gy, v, self._weight, Wanted(False, wanted.weight))[1]
        vp, sums, tgamma = _allocate_first_half(self.gp, self._norm[0])
        self._call("double_backward_gradient", self.gp, self.y, vy, *self._norm, v_gamma, v_beta, vp, sums, tgamma)
        self._half = (vy, v_gamma, sums, tgamma, of_x, of_weight)
        return vp

    def double_backward_inputs(self, tp: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the derivatives of x, kernel, scale and shift: the second half, and the backward pass of tp."""
        vy, v_gamma, sums, tgamma, first_x, first_weight = self._half
        assert tgamma is not None and first_x is not None
        ty, tbeta = torch.empty_like(self.y), torch.empty_like(tgamma)
        given = (self.gp, self.y, vy, tp, *self._norm, v_gamma, sums)
        self._call("double_backward_inputs", *given, ty, tgamma, tbeta)
        of_x, of_weight = self._gradients(ty, self._x, self._weight, wanted)
        of_weight = of_weight if first_weight is None else first_weight.add_(of_weight)
        return [first_x.add_(of_x), of_weight, tgamma.sum(0), tbeta.sum(0)]

    def _backward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of the map, and of scale and shift per image."""
        gy, (ggamma, gbeta) = torch.empty_like(self.y), torch.empty_like(self.moments)
        self._call("backward", self.gp, self.y, *self._norm, gy, ggamma, gbeta)
        return gy, ggamma, gbeta

    def _gradients(self, gy: Tensor, x: Tensor, weight: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """Return the gradients of a convolution's input and kernel."""
        of_x = conv.input_gradient(gy, x, weight, self._padding) if wanted.x else x.new_empty(0)
        return of_x, conv.weight_gradient(gy, x, weight, self._padding) if wanted.weight else x.new_empty(0)

    def _call(self, kernel: str, *arguments: Tensor | float | None) -> None:
        call(f"norm_{kernel}", self.y, self._sizes, *arguments)


class ImageBlock:
    """A block that recomputes its map in each pass, image by image; see `MapBlock` for the methods.

    Args:
        x: Images `[N, C, H, W]`.
        params: Kernel `[K, C, h, w]`, scale `[K]` and shift `[K]`.
        padding: Rows and columns of zeros on each side.
        moments: See `MapBlock`.
    """

    gp: Tensor
    _half: tuple[Tensor, ...]

    def __init__(
        self, x: Tensor, params: Sequence[Tensor], padding: tuple[int, int], moments: Tensor | None = None
    ) -> None:
        weight, *scales = params
        self._x, self._shape, self._sizes = x, weight.shape, conv.sizes_of(x, weight, padding)
        height, width = conv.map_size(x, weight, padding)
        self.pooled = (len(x), len(weight), height // 2, width // 2)
        self.moments = x.new_empty(2, len(x), len(weight)) if moments is None else moments
        self._weight, self._norm = self._layouts(weight), (*self.moments, *scales)

    def forward(self, eps: float) -> Tensor:
        """See `MapBlock`."""
        mean, rstd, gamma, beta = self._norm
        pooled = empty_maps(self._x, *self.pooled)
        self._call("forward", self._weight[0], gamma, beta, float(eps), pooled, mean, rstd)
        return pooled

    def backward(self, gp: Tensor, wanted: Wanted) -> list[Tensor]:
        """See `MapBlock`; the kernel's gradient is always computed."""
        self.gp = gp
        of_x, of_weight = self._of_x(wanted), self._of_weights()
        ggamma, gbeta = torch.empty_like(self.moments)
        given = (*self._weight, *self._norm, gp, of_weight, ggamma, gbeta)
        self._call("backward", *given, of_x if wanted.x else None)
        return [of_x, self._sum(of_weight), ggamma.sum(0), gbeta.sum(0)]

    def double_backward_gradient(self, v: None, v_params: Sequence[Tensor], wanted: Wanted) -> Tensor:
        """See `MapBlock`."""
        v_weight, v_gamma, v_beta = v_params
        layouts = self._layouts(v_weight)
        vp, sums, tgamma = _allocate_first_half(self.gp, self._norm[0])
        given = (self._weight[0], layouts[0], *self._norm, self.gp, v_gamma, v_beta)
        self._call("double_backward_gradient", *given, vp, sums, tgamma)
        self._half = (*layouts, v_gamma, sums, tgamma)
        return vp

    def double_backward_inputs(self, tp: Tensor, wanted: Wanted) -> list[Tensor]:
        """See `MapBlock`."""
        *layouts, v_gamma, sums, tgamma = self._half
        of_x, of_weight, tbeta = self._of_x(wanted), self._of_weights(), torch.empty_like(tgamma)
        given = (*self._weight, *layouts, *self._norm, self.gp, tp, v_gamma, sums, of_weight, tgamma, tbeta)
        self._call("double_backward_inputs", *given, of_x if wanted.x else None)
        return [of_x, self._sum(of_weight), tgamma.sum(0), tbeta.sum(0)]

    def _call(self, kernel: str, *arguments: Tensor | float | None) -> None:
        threads = min(torch.get_num_threads(), len(self._x))
        scratch = self._x.new_empty(threads * query("block_scratch", self._x, self._sizes))
        call(f"block_{kernel}", self._x, self._sizes, self._x, *arguments, scratch, threads)

    def _layouts(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kernel as `[h w C, K]`, and as `[K, patch]` padded with zeros."""
        rows = weight.permute(0, 2, 3, 1).flatten(1)
        zeros = query("block_patch", self._x, self._sizes) - rows.shape[1]
        return rows.t().contiguous(), F.pad(rows, (0, zeros)).contiguous()

    def _of_x(self, wanted: Wanted) -> Tensor:
        return torch.empty_like(self._x) if wanted.x else self._x.new_empty(0)

    def _of_weights(self) -> Tensor:
        """Allocate the kernel's gradients per image."""
        outputs, channels, height, width = self._shape
        return self._x.new_empty(len(self._x), outputs, height, width, channels)

    def _sum(self, of_weights: Tensor) -> Tensor:
        return of_weights.sum(0).permute(0, 3, 1, 2)


def _allocate_first_half(gp: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Allocate the derivative of gp, the sums of each map, and the derivative of the scale per image."""
    count, channels = mean.shape
    return torch.empty_like(gp), gp.new_empty(count, _NUM_SUMS, channels), torch.empty_like(mean)
