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

from pdd_lightning.kernels.calls import NAMES, call, query, sums_dtype
from pdd_lightning.kernels.compiled import library

_LANES = 16
"""Channels come in multiples of the widest vector."""
_SIDE = 4
_PLACES = 36
_FEWEST = 16
"""Tiles from which on it pays to transform the kernel."""
_WASTE = 1.5
"""Places of the tiles, to those of the result, up to which it pays to compute them: 7x7 does, 6x6 does not always."""
_FEWEST_BFLOAT16 = 128
"""Channels from which on this, in float32, is faster than plain convolutions in bfloat16."""


def suits(x: Tensor, weight: Tensor, padding: tuple[int, int]) -> bool:
    """Return whether a convolution can be computed here, and faster than elsewhere.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`.
        padding: Rows and columns of zeros on each side.
    """
    outputs, channels, *side = weight.shape
    if side != [3, 3] or channels % _LANES or outputs % _LANES or max(padding) > 2 or x.shape[1] != channels:
        return False
    if x.device.type != "cpu" or x.dtype not in NAMES or weight.dtype != x.dtype:
        return False
    rows, columns = _result_size(x, padding)
    tiles = -(-rows // _SIDE) * -(-columns // _SIDE)
    enough = len(x) * tiles >= _FEWEST and 0 < tiles * _SIDE * _SIDE <= _WASTE * rows * columns
    if x.dtype == torch.bfloat16 and min(outputs, channels) < _FEWEST_BFLOAT16:
        return False
    # What counts or fakes operations does not see into the library.
    return enough and not torch._C._len_torch_dispatch_stack() and library() is not None


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
    weight = torch.empty((outputs, channels, 3, 3), dtype=x.dtype, memory_format=torch.channels_last)
    scratch = _scratch(x, "kernel_slope", channels, outputs)
    call("winograd_kernel_slope", x, _sizes(x, outputs, padding), x, slope, weight, scratch, _threads())
    return weight


def _transformed(weight: Tensor, inputs: int, outputs: int, steps: tuple[int, int, int, int], first: int) -> Tensor:
    """The 36 places of a kernel. `steps` lead to the next input, output, row and column, from number `first` on."""
    places = torch.empty(_PLACES * inputs * outputs, dtype=sums_dtype(weight.dtype))
    call("winograd_transform", weight, (inputs, outputs, *steps), weight.as_strided((1,), (1,), first), places)
    return places


def _convolve(x: Tensor, places: Tensor, outputs: int, padding: tuple[int, int]) -> Tensor:
    x = x.detach().contiguous(memory_format=torch.channels_last)
    shape = (len(x), outputs, *_result_size(x, padding))
    result = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    scratch = _scratch(x, "convolve", x.shape[1], outputs, _threads())
    call("winograd_convolve", x, _sizes(x, outputs, padding), x, places, result, scratch, _threads())
    return result


def _sizes(x: Tensor, outputs: int, padding: tuple[int, int]) -> tuple[int, ...]:
    count, channels, height, width = x.shape
    return count, height, width, channels, outputs, *padding


def _result_size(x: Tensor, padding: tuple[int, int]) -> tuple[int, int]:
    return x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2


def _scratch(x: Tensor, kernel: str, *sizes: int) -> Tensor:
    return torch.empty(query(f"winograd_{kernel}_scratch", x, sizes), dtype=sums_dtype(x.dtype))


def _threads() -> int:
    return torch.get_num_threads()
