"""How a kernel is called."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from pdd_lightning.kernels.compiled import library

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
"""The types that kernels exist for, and what they are called in their names."""
LANES = 16
"""Numbers of the widest vector, of which kernels for convolutions take whole ones."""


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over numbers of a type are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def takes_kernels(x: Tensor, weight: Tensor) -> bool:
    """Return whether the convolution of images with a kernel may be computed by this package's kernels at all.

    Args:
        x: Images `[N, C, H, W]`.
        weight: Kernel `[K, C, h, w]`, whose outputs must be a multiple of the widest vector.
    """
    if x.device.type != "cpu" or x.dtype not in NAMES or (weight.device, weight.dtype) != (x.device, x.dtype):
        return False
    fits = len(x) > 0 and weight.shape[1] == x.shape[1] and weight.shape[0] % LANES == 0
    # Whoever counts operations does not see those in the library.
    return fits and not torch._C._len_torch_dispatch_stack() and library() is not None


def call(kernel: str, typed: Tensor, sizes: Sequence[int], *arguments: Tensor | float | int | None) -> None:
    """Call a kernel.

    Args:
        kernel: Its name without the type.
        typed: A tensor of the type that it is called for.
        sizes: Its first arguments, integers.
        arguments: The rest: tensors, as pointers to their first number (None is a null pointer), and numbers.
    """
    words = [ctypes.c_int64(size) for size in sizes]
    getattr(library(), f"{kernel}_{NAMES[typed.dtype]}")(*words, *map(_word, arguments))


def like(tensor: Tensor, *shape: int) -> Tensor:
    """Return room for maps, channels-last, of a tensor's type and device."""
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=torch.channels_last)


def query(kernel: str, typed: Tensor, sizes: Sequence[int]) -> int:
    """Return the integer that a function of sizes gives for the type of a tensor."""
    function = getattr(library(), f"{kernel}_{NAMES[typed.dtype]}")
    function.restype = ctypes.c_int64
    return int(function(*map(ctypes.c_int64, sizes)))


def _word(argument: Tensor | float | int | None) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int64:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
