"""The passes through all blocks of a ConvNet, one block after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdd_lightning.errors import KernelError
from pdd_lightning.kernels.block import ImageBlock, MapBlock, Wanted, suits_image_block
from pdd_lightning.kernels.convolution import channels_last

EACH = 4
"""Parameters of a block: kernel and bias of the convolution, scale and shift of the norm."""


class Chain:
    """The blocks, for the images of one call.

    Args:
        padding: Rows and columns of zeros around the images of each block.
        eps: Added to the variance by the norm of each block.
        images: `[N, C, H, W]`.
        params: Of each block kernel, bias, scale and shift.
        saved: What `saved` was, once `forward` was called.
        gps: What `gps` was, once `backward` was called; in place of the last, that of the features will do.
        with_map: Have the first block's map in memory.

    Raises:
        KernelError: Shapes of parameters do not fit each other: kernels would read what is not there.
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
            [_laid_out(one) for one in params[first : first + EACH]] for first in range(0, EACH * len(eps), EACH)
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
        """What the other passes need: inputs and maps of all blocks but the first, and moments of all."""
        ys = [block.y for block in self._blocks[1:] if isinstance(block, MapBlock)]  # which they all are
        return [*self._xs[1:], *ys, *(block.moments for block in self._blocks)]

    @property
    def gps(self) -> list[Tensor]:
        """The gradients of the blocks' results."""
        return [block.gp for block in self._blocks]

    def backward(self, gradient: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the gradients of the images and of all parameters from that of the features.

        Args:
            gradient: Gradient of the features `[N, F]`.
            wanted: Derivatives by images and kernels; the others are empty.
        """
        of_x, of_params = self._of_last(gradient), list[Tensor]()
        for number, block in reversed(list(enumerate(self._blocks))):
            of_x, *rest = block.backward(of_x, self._wanted(number, wanted))
            of_params[:0] = self._with_bias(number, rest)
        return [of_x, *of_params]

    def double_backward_gradient(self, v_images: Tensor | None, v: Sequence[Tensor], wanted: Wanted) -> Tensor:
        """Return the derivative of the gradient of the features, from those of what `backward` returned."""
        vp = None if v_images is None else channels_last(v_images)
        for number, block in enumerate(self._blocks):
            weight, _, *scales = (_laid_out(one) for one in v[EACH * number : EACH * number + EACH])
            vp = block.double_backward_gradient(vp, (weight, *scales), self._wanted(number, wanted))  # type: ignore[arg-type]
        assert vp is not None
        return vp.flatten(1)

    def double_backward_inputs(self, gradient: Tensor, wanted: Wanted) -> list[Tensor]:
        """Return the derivatives of images and parameters, with those that follow from a gradient of the features."""
        tp, of_params = self._of_last(gradient), list[Tensor]()
        for number, block in reversed(list(enumerate(self._blocks))):
            tp, *rest = block.double_backward_inputs(tp, self._wanted(number, wanted))
            of_params[:0] = self._with_bias(number, rest)
        return [tp, *of_params]

    def _of_last(self, gradient: Tensor) -> Tensor:
        """The gradient of the last block's result from that of the features."""
        return channels_last(gradient.reshape(self._blocks[-1].pooled))

    def _block(self, number: int, y: Tensor | None = None, moments: Tensor | None = None) -> MapBlock | ImageBlock:
        """A block's passes. Only the first one can be computed image by image: the others' inputs have derivatives."""
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
        if weight.shape[1] != channels or any(one.shape != weight.shape[:1] for one in vectors):
            shapes = ", ".join(str(list(one.shape)) for one in (weight, *vectors))
            raise KernelError(
                f"block {number} of a ConvNet works on {channels} channels, and its bias, scale and shift have as many"
                f" numbers as its kernel has outputs; got parameters of the shapes {shapes}"
            )
        channels = len(weight)


def _laid_out(tensor: Tensor) -> Tensor:
    """The tensor in the order in which kernels read it."""
    return channels_last(tensor) if tensor.ndim == 4 else tensor.contiguous()
