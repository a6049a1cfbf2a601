"""Convolutions of stride 1 on a CPU, and their gradients, without autograd.

3x3 convolutions use Winograd's algorithm F(4x4, 3x3), with a quarter of the multiplications, if it is faster; others
use torch. A tile of 4x4 numbers of the result depends on 6x6 numbers d of the map. With w the kernel and
g the gradient of the tile, and sums over input channels, output channels, or tiles:

    result = A^T [(G w G^T) * (B^T d B)] A
    gradient of the kernel = G^T [(B^T d B) * (A g A^T)] G

where * multiplies element by element: for each of the 36 elements it is a matrix product over the channels.
The gradient of the map is the convolution of the gradient of the result with the flipped kernel.

The matrices follow from the points 0, +-sqrt(1/2), +-sqrt(2) and infinity. Their float32 error is 2 to 5 times that of
torch's sums, and half that of the usual points 0, +-1, +-2 and infinity. Non-finite numbers spread over their tile.

References:
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pdd_lightning.kernels.compiled import call, empty_maps, query

LANES = 16
"""Length of the widest vector; convolution kernels support multiples of it as numbers of channels."""
FEW = 36
"""Entries of a kernel per output channel (3x3, four channels) up to which a map is cheaper to compute than to move."""
_TILE = 4
_MIN_TILES = 16
"""Number of tiles that is worth the transform of the kernel."""
_MAX_WASTE = 1.5
"""Largest ratio of the tiles' area to that of the result at which Winograd's algorithm is faster."""


def map_size(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the convolution of images `[N, C, H, W]` with a kernel `[K, C, h, w]`."""
    height, width = (x.shape[axis] + 2 * padding[axis - 2] - weight.shape[axis] + 1 for axis in (2, 3))
    return height, width


def sizes_of(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> tuple[int, ...]:
    """Return the sizes of a convolution in the order of the kernels' struct."""
    count, channels, height, width = x.shape
    return count, height, width, channels, len(weight), *weight.shape[2:], *padding


def suits_winograd(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Return whether Winograd's algorithm supports this convolution, and is faster; see `convolution`."""
    outputs, channels, *side = weight.shape
    if side != [3, 3] or channels % LANES or outputs % LANES or max(padding) > 2:
        return False
    rows, columns = map_size(x, weight, padding)
    tiles = -(-rows // _TILE) * -(-columns // _TILE)
    return len(x) * tiles >= _MIN_TILES and 0 < tiles * _TILE * _TILE <= _MAX_WASTE * rows * columns


def convolution(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the convolution `[N, K, H', W']` without bias.

    Args:
        x: Images `[N, C, H, W]`, channels-last, as is the kernel.
        weight: Kernel `[K, C, h, w]`, of the same dtype.
        padding: Rows and columns of zeros on each side.
    """
    if not suits_winograd(x, weight, padding):
        return channels_last(F.conv2d(x, weight, padding=padding))
    outputs, channels = weight.shape[:2]
    elements = _transform(weight, (channels, outputs, 1, 9 * channels, 3 * channels, channels), 0)
    return _convolve(x, elements, sizes_of(x, weight, padding), map_size(x, weight, padding))


def input_gradient(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the gradient of the images from that of the result `[N, K, H', W']`; all are channels-last."""
    if suits_winograd(x, weight, padding):
        outputs, channels = weight.shape[:2]
        elements = _transform(weight, (outputs, channels, 9 * channels, 1, -3 * channels, -channels), 8 * channels)
        count, _, height, width = gradient.shape
        sizes = (count, height, width, outputs, channels, 3, 3, 2 - padding[0], 2 - padding[1])
        return _convolve(gradient, elements, sizes, x.shape[2:])
    if weight[0].numel() > FEW:
        return _product(gradient, x, weight, padding, 0)
    # Transposed convolutions to few channels are slow. A 1x1 convolution computes each pixel's contribution to the
    # gradients of its neighbors, and the contributions are then summed.
    count, channels, height, width = x.shape
    rows, columns = weight.shape[2:]
    parts = F.conv2d(gradient, weight.flatten(1).t()[:, :, None, None]).unflatten(1, (channels, rows * columns))
    padded = empty_maps(x, count, channels, height + 2 * padding[0], width + 2 * padding[1]).zero_()
    for number in range(rows * columns):
        down, right = divmod(number, columns)
        padded[:, :, down : down + gradient.shape[2], right : right + gradient.shape[3]] += parts[:, :, number]
    return channels_last(padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width])


def weight_gradient(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the gradient of the kernel `[K, C, h, w]` from that of the result; all are channels-last."""
    if not suits_winograd(x, weight, padding):
        return _product(gradient, x, weight, padding, 1)
    sizes = sizes_of(x, weight, padding)
    of_weight = empty_maps(x, *weight.shape)
    scratch = x.new_empty(query("winograd_kernel_gradient_scratch", x, sizes))
    call("winograd_kernel_gradient", x, sizes, x, gradient, of_weight, scratch, torch.get_num_threads())
    return of_weight


def channels_last(maps: Tensor) -> Tensor:
    """Return maps or kernels in channels-last memory layout."""
    return maps.contiguous(memory_format=torch.channels_last)


def _product(gradient: Tensor, x: Tensor, weight: Tensor, padding: tuple[int, int], which: int) -> Tensor:
    """Return torch's gradient of the images (0) or of the kernel (1)."""
    mask = [which == 0, which == 1, False]
    products: list[Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, [1, 1], list(padding), [1, 1], False, [0, 0], 1, mask
    )
    return channels_last(products[which])


def _transform(weight: Tensor, steps: tuple[int, ...], first: int) -> Tensor:
    """Return the 36 elements of a transformed kernel.

    Args:
        weight: The kernel `[K, C, 3, 3]`, channels-last.
        steps: Number of inputs and outputs, and memory strides of input, output, row and column.
        first: Memory offset of the first number.
    """
    elements = weight.new_empty(query("winograd_transform_size", weight, (0, 0, 0, *steps[:2], 0, 0, 0, 0)))
    call("winograd_transform", weight, steps, weight.as_strided((1,), (1,), weight.storage_offset() + first), elements)
    return elements


def _convolve(x: Tensor, elements: Tensor, sizes: tuple[int, ...], result_size: tuple[int, ...]) -> Tensor:
    result, threads = empty_maps(x, sizes[0], sizes[4], *result_size), torch.get_num_threads()
    scratch = x.new_empty(threads * query("winograd_convolve_scratch", x, sizes))
    call("winograd_convolve", x, sizes, x, elements, result, scratch, threads)
    return result
