"""A block of convolution, norm, ReLU and pooling for images of few channels, computed image by image on a CPU.

The first block of a ConvNet has the largest map, and little to compute for each of its numbers. Kept in memory, it is
written and read again by the convolution and by the kernels of `norm_relu_pool`; here it stays in the processor's
cache, and is computed again in each pass. The formulas are those of `norm_relu_pool` and of a convolution.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels import norm_relu_pool as norms
from pdd_lightning.kernels.calls import call, like, query, sums_dtype, takes_kernels
from pdd_lightning.kernels.convolution import FEW, convolution

_LARGEST = 128 * 128
"""Positions of a map up to which this was measured to be faster, if less so from where it does not fit the cache."""


def suits(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Return whether a block can be computed here, and faster than by a convolution and `norm_relu_pool`.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`.
        padding: Rows and columns of zeros on each side.
    """
    if weight[0].numel() > FEW or not takes_kernels(x, weight):
        return False
    height, width = _map_size(x, weight, padding)
    return min(height, width) >= 2 and height * width <= _LARGEST


def image_block(x: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, padding: tuple[int, int], eps: float) -> Tensor:
    """Return the pooled map `[N, K, H' // 2, W' // 2]`, in x's type; differentiable twice.

    Args:
        x: Images `[N, C, H, W]`, float32, float64 or bfloat16, on the CPU; computed in float32 at least.
        weight: Kernel `[K, C, h, w]`, of the same type.
        gamma: Scale of each channel `[K]`.
        beta: Shift of each channel `[K]`.
        padding: Rows and columns of zeros on each side.
        eps: Added to the variance.
    """
    pooled: Tensor = _ImageBlock.apply(x, weight, gamma, beta, padding, eps)
    return pooled


class ImageBlock:
    """The passes of a block over some images; see `pdd_lightning.kernels.chain` for how they follow each other.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`, of the same type.
        padding: Rows and columns of zeros on each side.
    """

    def __init__(self, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> None:
        self._x = x.detach().contiguous(memory_format=torch.channels_last)
        self._shape = tuple(weight.shape)
        count, channels, height, width = x.shape
        self._sizes = (count, height, width, channels, weight.shape[0], *weight.shape[2:], *padding)
        self._dtype = sums_dtype(x.dtype)
        self._weight = self._forms(weight)
        self._map = (len(x), weight.shape[0], *_map_size(x, weight, padding))
        self._v_weight: tuple[Tensor, Tensor] | None = None
        self._half: norms.Adjoint | None = None

    def forward(self, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, norms.NormState]:
        """Return the pooled map and the state."""
        norms.require_shapes(self._map, self._x.device, gamma, beta)
        gamma, beta = self._sums(gamma), self._sums(beta)
        pooled = self._like_pooled()
        state = norms.NormState(self._of_images(), self._of_images(), gamma, beta)
        self._call("forward", self._weight[0], gamma, beta, float(eps), pooled, state.mean, state.rstd)
        return pooled, state

    def backward(
        self, gp: Tensor, state: norms.NormState, images: bool
    ) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Return the slopes of the images (None where they are not wanted), of the kernel, of gamma and of beta."""
        norms.require_shapes(self._map, self._x.device, state.gamma, state.beta, gp)
        of_x, of_weight = self._like_images(images), self._of_kernels()
        ggamma, gbeta = self._of_images(), self._of_images()
        self._call("backward", *self._weight, *state, self._pooled(gp), of_weight, ggamma, gbeta, of_x)
        return of_x, self._kernel(of_weight), ggamma.sum(0), gbeta.sum(0)

    def adjoint(
        self,
        gp: Tensor,
        state: norms.NormState,
        v: None,
        v_weight: Tensor,
        v_gamma: Tensor,
        v_beta: Tensor,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        """Return what follows for gp from the slopes of what `backward` returned, without the images' (v)."""
        norms.require_shapes(self._map, self._x.device, v_gamma, v_beta, gp)
        self._v_weight, vp = self._forms(v_weight), self._like_pooled()
        sums, tgamma = state.mean.new_empty(len(self._x), norms.SUMS, self._shape[0]), self._of_images()
        given = (self._pooled(gp), self._sums(v_gamma), self._sums(v_beta))
        self._call("adjoint", self._weight[0], self._v_weight[0], *state, *given, vp, sums, tgamma)
        self._half = norms.Adjoint(vp, sums, tgamma)
        return vp

    def total(
        self, gp: Tensor, state: norms.NormState, tp: Tensor, v_gamma: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Return the derivatives of images (if wanted), kernel, gamma and beta: the rest of `adjoint`, and of tp."""
        assert self._half is not None and self._v_weight is not None
        of_x, of_weight = self._like_images(wanted[0]), self._of_kernels()
        tgamma, tbeta = self._half.tgamma.clone(), self._of_images()
        given = (self._pooled(gp), self._pooled(tp), self._sums(v_gamma), self._half.sums)
        self._call("total", *self._weight, *self._v_weight, *state, *given, of_weight, tgamma, tbeta, of_x)
        return of_x, self._kernel(of_weight) if wanted[1] else None, tgamma.sum(0), tbeta.sum(0)

    def _call(self, kernel: str, *arguments: Tensor | float | None) -> None:
        threads = min(torch.get_num_threads(), len(self._x))
        scratch = self._x.new_empty(threads * query("block_scratch", self._x, self._sizes), dtype=self._dtype)
        call(f"block_{kernel}", self._x, self._sizes, self._x, *arguments, scratch, threads)

    def _forms(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The kernel `[h w C, K]`, and as `[K, patch]` with zeros at the end."""
        rows = weight.detach().to(self._dtype).permute(0, 2, 3, 1).flatten(1)
        zeros = query("block_patch", self._x, self._sizes) - rows.shape[1]
        return rows.t().contiguous(), F.pad(rows, (0, zeros)).contiguous()

    def _kernel(self, of_images: Tensor) -> Tensor:
        outputs, channels, height, width = self._shape
        return of_images.sum(0).view(outputs, height, width, channels).permute(0, 3, 1, 2).to(self._x.dtype)

    def _sums(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self._dtype).contiguous()

    def _pooled(self, tensor: Tensor) -> Tensor:
        return tensor.detach().contiguous(memory_format=torch.channels_last)

    def _like_pooled(self) -> Tensor:
        count, outputs, height, width = self._map
        return like(self._x, count, outputs, height // 2, width // 2)

    def _of_images(self) -> Tensor:
        return self._x.new_empty(len(self._x), self._shape[0], dtype=self._dtype)

    def _of_kernels(self) -> Tensor:
        outputs, channels, height, width = self._shape
        return self._x.new_empty(len(self._x), outputs, height * width * channels, dtype=self._dtype)

    def _like_images(self, wanted: bool) -> Tensor | None:
        return torch.empty_like(self._x) if wanted else None


def _map_size(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the map."""
    height, width = (x.shape[axis] + 2 * padding[axis - 2] - weight.shape[axis] + 1 for axis in (2, 3))
    return height, width


class _ImageBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        gamma: Tensor,
        beta: Tensor,
        padding: tuple[int, int],
        eps: float,
    ) -> Tensor:
        """The pooled map."""
        pooled, state = ImageBlock(x, weight, padding).forward(gamma, beta, eps)
        ctx.save_for_backward(x, weight, gamma, beta, state.mean, state.rstd)
        ctx.padding, ctx.eps = padding, eps
        return pooled

    @staticmethod
    def backward(ctx: Any, gp: Tensor) -> tuple[Tensor | None, ...]:
        """Slopes of the inputs; by the block's parts where they are to be differentiated again."""
        x, weight, gamma, beta, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, which the parts can be
            # As nodes of their own: where one input depends on another, only what it does here counts.
            x, weight, gamma, beta = inputs = tuple(one.view_as(one) for one in (x, weight, gamma, beta))
            pooled = norms.norm_relu_pool(convolution(x, weight, ctx.padding), gamma, beta, ctx.eps)
            wanted = [one for one, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
            slopes = iter(torch.autograd.grad(pooled, wanted, gp, create_graph=True))
            return (*(next(slopes) if needed else None for needed in ctx.needs_input_grad[:4]), None, None)
        block = ImageBlock(x, weight, ctx.padding)
        state = norms.NormState(mean, rstd, block._sums(gamma), block._sums(beta))
        of_x, of_weight, ggamma, gbeta = block.backward(gp, state, ctx.needs_input_grad[0])
        return of_x, of_weight, ggamma.to(gamma), gbeta.to(beta), None, None
