"""Convolutions of 3x3 on a CPU with a quarter of the multiplications, by Winograd's algorithm F(4x4, 3x3).

A tile of 4x4 numbers of the result depends on 6x6 numbers d of the map. With w the kernel and g the slope of the tile,
and sums over input channels, output channels, or tiles where there are several:

    result = A^T [(G w G^T) * (B^T d B)] A
    slope of the kernel = G^T [(B^T d B) * (A g A^T)] G

where * multiplies place by place: for each of the 36 places a product of matrices, which couples the channels. The
slope of the map is the convolution of the slope of the result with the flipped kernel.

The matrices follow from the points 0, +-sqrt(1/2), +-sqrt(2) and infinity, with which float32 rounds about twice as
much as plain sums do, and half as much as with the usual points 0, +-1, +-2 and infinity. A number that is not finite
spreads over its tile.

References:
    Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016 (arXiv 1509.09308).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pdd_lightning.kernels.calls import LANES, call, like, query, sums_dtype, takes_kernels
from pdd_lightning.kernels.compiled import processor

_SIDE = 4
_FEWEST = 16
"""Tiles from which on it pays to transform the kernel."""
_WASTE = 1.5
"""Numbers of the tiles, to those of the result, up to which it pays to compute them: 7x7 does, 6x6 does not always."""
_FEWEST_BFLOAT16 = 128
"""Channels from which on this, in float32, is faster than plain convolutions in bfloat16: where these are twice as fast
as in float32. With AMX they are many times as fast, and left to torch."""


def suits(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Return whether a convolution can be computed here, and faster than elsewhere.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`.
        padding: Rows and columns of zeros on each side.
    """
    outputs, channels, *side = weight.shape
    if side != [3, 3] or channels % LANES or max(padding) > 2 or not takes_kernels(x, weight):
        return False
    rows, columns = _result_size(x, padding)
    tiles = -(-rows // _SIDE) * -(-columns // _SIDE)
    if x.dtype == torch.bfloat16 and (min(outputs, channels) < _FEWEST_BFLOAT16 or "amx_bf16" in processor()):
        return False
    return len(x) * tiles >= _FEWEST and 0 < tiles * _SIDE * _SIDE <= _WASTE * rows * columns


def convolution(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the convolution `[N, K, H', W']` of images `[N, C, H, W]` with a kernel `[K, C, 3, 3]`."""
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    outputs, channels = weight.shape[:2]
    places = _transformed(weight, channels, outputs, (1, 9 * channels, 3 * channels, channels), 0)
    return _convolve(x, places, outputs, padding)


def input_slope(slope: Tensor, weight: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the slope of the images from that of the result, `[N, K, H', W']`."""
    weight = weight.detach().contiguous(memory_format=torch.channels_last)
    outputs, channels = weight.shape[:2]
    places = _transformed(weight, outputs, channels, (9 * channels, 1, -3 * channels, -channels), 8 * channels)
    return _convolve(slope, places, channels, (2 - padding[0], 2 - padding[1]))


def weight_slope(slope: Tensor, x: Tensor, padding: tuple[int, int]) -> Tensor:
    """Return the slope of the kernel `[K, C, 3, 3]` from that of the result."""
    x, slope = (tensor.detach().contiguous(memory_format=torch.channels_last) for tensor in (x, slope))
    channels, outputs = x.shape[1], slope.shape[1]
    weight = like(x, outputs, channels, 3, 3)
    scratch = _scratch(x, "kernel_slope_scratch", channels, outputs)
    threads = torch.get_num_threads()
    call("winograd_kernel_slope", x, _sizes(x, outputs, padding), x, slope, weight, scratch, threads)
    return weight


def _transformed(weight: Tensor, inputs: int, outputs: int, steps: tuple[int, int, int, int], first: int) -> Tensor:
    """The 36 places of a kernel. `steps` lead to the next input, output, row and column, from number `first` on."""
    places = _scratch(weight, "transform_size", inputs, outputs)
    start = weight.as_strided((1,), (1,), weight.storage_offset() + first)
    call("winograd_transform", weight, (inputs, outputs, *steps), start, places)
    return places


def _convolve(x: Tensor, places: Tensor, outputs: int, padding: tuple[int, int]) -> Tensor:
    x = x.detach().contiguous(memory_format=torch.channels_last)
    result = like(x, len(x), outputs, *_result_size(x, padding))
    threads = torch.get_num_threads()
    scratch = _scratch(x, "convolve_scratch", x.shape[1], outputs, threads)
    call("winograd_convolve", x, _sizes(x, outputs, padding), x, places, result, scratch, threads)
    return result


def _sizes(x: Tensor, outputs: int, padding: tuple[int, int]) -> tuple[int, ...]:
    count, channels, height, width = x.shape
    return count, height, width, channels, outputs, *padding


def _result_size(x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    return x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2


def _scratch(x: Tensor, function: str, *sizes: int) -> Tensor:
    """Room for as many numbers as a function of the library says."""
    return x.new_empty(query(f"winograd_{function}", x, sizes), dtype=sums_dtype(x.dtype))
