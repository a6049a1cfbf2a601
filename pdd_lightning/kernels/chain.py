"""The passes through all blocks of a ConvNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdd_lightning.errors import KernelError
from pdd_lightning.kernels.block import ImageBlock, MapBlock, Wanted, suits_image_block
from pdd_lightning.kernels.convolution import channels_last

PER_BLOCK = 4
"""Number of parameters of a block: kernel and bias of the convolution, scale and shift of the norm."""


class Chain:
    """The blocks for a batch of images.

    Args:
        padding: Rows and columns of zeros around the images of each block.
        eps: Added to the variance by the norm of each block.
        images: `[N, C, H, W]`.
        params: Kernel, bias, scale and shift of each block.
        saved: `saved` after an earlier call of `forward`.
        gps: `gps` after an earlier call of `backward`; the last may have the shape of the features.
        with_map: Store the first block's map in memory.

    Raises:
        KernelError: Shapes of parameters do not fit each other, so that kernels would read out of bounds.
    """

    def __init__(
        self,
        padding: Sequence[int],
        eps: Sequence[float],
        images: Tensor,
        params: Sequence[Tensor],
        saved: Sequence[Tensor] = (),
        gps: Sequence[Tensor] = (),
        with_map: bool = False,
    ) -> None:
        self._padding, self._eps, self._with_map = list(zip(padding[::2], padding[1::2], strict=True)), eps, with_map
        self._params = [
            [_lay_out(param) for param in params[first : first + PER_BLOCK]]
            for first in range(0, PER_BLOCK * len(eps), PER_BLOCK)
        ]
        _check(images, self._params)
        depth, x = len(eps), channels_last(images)
        self._xs, self._blocks = [x, *saved[: depth - 1]], []
        if saved:
            ys, moments = (None, *saved[depth - 1 : 2 * depth - 2]), saved[2 * depth - 2 :]
            for number in range(depth):
                self._blocks.append(self._block(number, ys[number], moments[number]))
        for block, gp in zip(self._blocks, gps, strict=False):
            block.gp = channels_last(gp.reshape(block.pooled))

    def forward(self) -> Tensor:
        """Return the features `[N, F]`."""
        for number, eps in enumerate(self._eps):
            self._blocks.append(self._block(number))
            self._xs.append(self._blocks[-1].forward(eps))
        return self._xs.pop().flatten(1)

    @property
    def saved(self) -> list[Tensor]:
        """Inputs and maps of all blocks but the first, and moments of all, which the other passes need."""
        ys = [block.y for block in self._blocks[1:] if isinstance(block, MapBlock)]  # all of them
        return [*self._xs[1:], *ys, *(block.moments for block in self._blocks)]

    @property
    def gps(self) -> list[Tensor]:
        """Gradients of the blocks' outputs."""
        return [block.gp for block in self._blocks]

    def backward(self, gradient: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the gradients of the images and of all parameters from that of the features `[N, F]`."""
        of_x, of_params = self._of_last(gradient), list[Tensor]()
        for number, block in reversed(list(enumerate(self._blocks))):
            of_x, *rest = block.backward(of_x, self._wanted(number, wanted))
            of_params[:0] = self._with_bias(number, rest)
        return [of_x, *of_params]

    def double_backward_gradient(self, v_images: Tensor | None, v: Sequence[Tensor], wanted: Wanted) -> Tensor:
        """Return the derivative of the features' gradient from those of the results of `backward`."""
        vp = None if v_images is None else channels_last(v_images)
        for number, block in enumerate(self._blocks):
            weight, _, *scales = (_lay_out(param) for param in v[PER_BLOCK * number : PER_BLOCK * number + PER_BLOCK])
            vp = block.double_backward_gradient(vp, (weight, *scales), self._wanted(number, wanted))  # type: ignore[arg-type]
        assert vp is not None
        return vp.flatten(1)

    def double_backward_inputs(self, gradient: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the derivatives of images and parameters, including those from a gradient of the features."""
        tp, of_params = self._of_last(gradient), list[Tensor]()
        for number, block in reversed(list(enumerate(self._blocks))):
            tp, *rest = block.double_backward_inputs(tp, self._wanted(number, wanted))
            of_params[:0] = self._with_bias(number, rest)
        return [tp, *of_params]

    def _of_last(self, gradient: Tensor) -> Tensor:
        """Return the gradient of the last block's output from that of the features."""
        return channels_last(gradient.reshape(self._blocks[-1].pooled))

    def _block(self, number: int, y: Tensor | None = None, moments: Tensor | None = None) -> MapBlock | ImageBlock:
        """Return a block. Only the first can be an `ImageBlock`, since the others' inputs have derivatives."""
        x, padding, (weight, _, *scales) = self._xs[number], self._padding[number], self._params[number]
        if number == 0 and not self._with_map and suits_image_block(x, weight, padding):
            return ImageBlock(x, (weight, *scales), padding, moments)
        return MapBlock(x, (weight, *scales), padding, y, moments)

    def _wanted(self, number: int, wanted: Wanted) -> Wanted:
        return Wanted(number > 0 or wanted.x, wanted.weight)

    def _with_bias(self, number: int, derivatives: Sequence[Tensor]) -> list[Tensor]:
        of_weight, *rest = derivatives
        return [of_weight, torch.zeros_like(self._params[number][1]), *rest]


def _check(images: Tensor, params: Sequence[Sequence[Tensor]]) -> None:
    """Raise `KernelError` unless shapes of parameters fit each other."""
    channels = images.shape[1]
    for number, (weight, *vectors) in enumerate(params, 1):
        if weight.shape[1] != channels or any(vector.shape != weight.shape[:1] for vector in vectors):
            shapes = ", ".join(str(list(param.shape)) for param in (weight, *vectors))
            raise KernelError(
                f"block {number} of a ConvNet works on {channels} channels, and its bias, scale and shift have as many"
                f" numbers as its kernel has outputs; got parameters of the shapes {shapes}"
            )
        channels = len(weight)


def _lay_out(tensor: Tensor) -> Tensor:
    """Return the tensor in the memory layout of kernels."""
    return channels_last(tensor) if tensor.ndim == 4 else tensor.contiguous()
