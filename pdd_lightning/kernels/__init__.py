"""Operators in C++ for what torch does not do in one pass on a CPU; without a compiler, torch does it.

Nothing outside of this package knows how they work.
"""

from pdd_lightning.kernels.compiled import library
from pdd_lightning.kernels.operators import Geometry, features, loss_gradient, usable

__all__ = ["Geometry", "features", "library", "loss_gradient", "taken", "usable"]


def taken() -> bool | None:
    """Whether this process computes with the kernels, or with torch's own operations; None: neither was asked for."""
    return None if library.cache_info().currsize == 0 else library() is not None
