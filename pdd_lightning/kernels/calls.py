"""How a kernel is called."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from pdd_lightning.kernels.compiled import library

NAMES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
"""The types that kernels exist for, and what they are called in their names."""


def sums_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which sums over numbers of a type are computed."""
    return torch.float64 if dtype == torch.float64 else torch.float32


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


def query(kernel: str, typed: Tensor, sizes: Sequence[int]) -> int:
    """Return the integer that a function of sizes gives for the type of a tensor."""
    function = getattr(library(), f"{kernel}_{NAMES[typed.dtype]}")
    function.restype = ctypes.c_int64
    return int(function(*map(ctypes.c_int64, sizes)))


def _word(argument: Tensor | float | int | None) -> ctypes.c_void_p | ctypes.c_double | ctypes.c_int64:
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_double(argument) if isinstance(argument, float) else ctypes.c_int64(argument)
